"""A run on a disk: the first writer wins, keys stay inside, and kills and full disks leave nothing half-written."""

import ctypes
import os
import pickle
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raydr import backends
from raydr.errors import DamagedData, MissingInput, UserError
from raydr.storage import Run, check_key

from .processes import start

BAD_KEYS = [
    "",
    "/",
    "/etc/passwd",
    "..",
    "../x",
    "a/../b",
    "a/./b",
    "a//b",
    "a/",
    "a\0b",
    "a\nb",
    "a\n",
    "a\\b",
    "C:\\x",
    ".tmp/x",
    "a/.hidden",
    "grade=1/x",
    "s3://bucket/x",
    "%2e%2e/x",
    "~/x",
    "$HOME",
    "é",
    "a" * 201,
    "a/" * 500 + "a",
]


def test_the_first_writer_wins(run: Run) -> None:
    assert run.create("a/b.json", b"first")
    assert not run.create("a/b.json", b"second")
    assert run.read("a/b.json") == b"first"
    run.replace("a/b.json", b"third")
    assert run.read("a/b.json") == b"third"
    run.delete("a/b.json")
    run.delete("a/b.json")
    assert not run.exists("a/b.json")
    assert run.create("a/b.json", b"fourth")


def test_two_racing_processes_have_one_winner_per_key(run: Run) -> None:
    code = (
        "import sys; from raydr.storage import Run; run = Run(sys.argv[1]); sys.stdin.readline()\n"
        "print(*[i for i in range(150) if run.create(f'k/{i}', sys.argv[2].encode() * 1000)])"
    )
    racers = {name: start(code, run.url, name) for name in "ABC"}
    for racer in racers.values():
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    won = {name: {int(word) for word in racer.communicate()[0].split()} for name, racer in racers.items()}
    assert sum(map(len, won.values())) == 150
    for name, keys in won.items():
        for key in keys:
            assert run.read(f"k/{key}") == name.encode() * 1000


def test_readers_see_the_old_bytes_or_the_new_ones(run: Run) -> None:
    whole = {bytes([value]) * 100_000 for value in range(4)}
    run.replace("key", bytes([0]) * 100_000)
    seen, stop = set(), threading.Event()

    def poll() -> None:
        while not stop.is_set():
            seen.add(run.read("key"))

    reader = threading.Thread(target=poll)
    reader.start()
    for step in range(60):
        run.replace("key", bytes([step % 4]) * 100_000)
    stop.set()
    reader.join()
    assert seen <= whole
    assert len(seen) > 1


def test_missing_keys_are_named(run: Run) -> None:
    with pytest.raises(MissingInput, match=r"real/x\.parquet is not in .*out"):
        run.read("real/x.parquet")
    assert run.list() == []
    assert run.list("nothing") == []


def test_list_is_recursive_sorted_and_by_folder(run: Run) -> None:
    for key in ("real/b", "real/a/c", "realistic/d", "z"):
        run.create(key, key.encode())
    (run.path("real") / ".hidden").write_text("x")
    assert run.list("real") == [("real/a/c", 8), ("real/b", 6)]
    assert [key for key, _ in run.list()] == ["real/a/c", "real/b", "realistic/d", "z"]
    assert run.list("real/b") == []


def test_json_round_trip_and_damage(run: Run) -> None:
    assert run.create_json("a.json", {"x": [1, 2.5, None, "é"]})
    assert run.read_json("a.json") == {"x": [1, 2.5, None, "é"]}
    run.replace_json("a.json", [])
    assert run.read_json("a.json") == []
    for damaged in (b'{"x": [1, 2', b"\xff\xfe", b"[" * 100_000):
        run.replace("a.json", damaged)
        with pytest.raises(DamagedData, match=r"a\.json in .* is damaged"):
            run.read_json("a.json")


def test_read_many_leaves_out_what_is_gone(run: Run) -> None:
    run.create("a", b"1")
    run.create("b", b"2")
    assert run.read_many(["b", "gone", "a"]) == {"b": b"2", "a": b"1"}


@pytest.mark.parametrize("key", BAD_KEYS)
def test_every_method_refuses_a_bad_key(run: Run, key: str) -> None:
    calls = [
        lambda: run.create(key, b""),
        lambda: run.replace(key, b""),
        lambda: run.read(key),
        lambda: run.exists(key),
        lambda: run.delete(key),
        lambda: run.path(key),
        lambda: run.child(key),
        lambda: run.create_json(key, 1),
        lambda: run.replace_json(key, 1),
        lambda: run.read_json(key),
        lambda: run.upload(Path("."), key),
        lambda: run.download(key, Path("x")),
    ]
    if key:
        calls.append(lambda: run.list(key))
    for call in calls:
        with pytest.raises(UserError, match="no valid name inside a run"):
            call()
    assert not Path(run.url).exists()


@settings(max_examples=2000, deadline=None)
@given(st.one_of(st.text(max_size=40), st.text(alphabet="a./\\~-_\0 %", max_size=12)))
@example("a/..\n/b")
def test_an_accepted_key_stays_inside_the_run_under_its_own_name(key: str) -> None:
    root = "/srv/out"
    try:
        check_key(key)
    except UserError:
        return
    path = os.path.join(root, key)
    assert os.path.normpath(path) == path
    assert path.startswith(root + "/")
    assert len(os.path.basename(path).encode()) <= 255
    assert not any(part.startswith(".") for part in key.split("/"))


@pytest.mark.parametrize(
    "url",
    ["", "ftp://x/y", "s3://", "s3:///x", "s3://user:secret@bucket/x", "s3://bucket/../x", "az://a/b", "a\0b"],
)
def test_addresses_that_are_refused(url: str) -> None:
    with pytest.raises(UserError) as caught:
        Run(url)
    assert "secret" not in str(caught.value)


def test_a_run_is_absolute_picklable_and_has_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = Run("out")
    assert run.url == str(tmp_path / "out")
    assert Run(f"file://{tmp_path}/out") == run
    run.create("sub/x", b"1")
    monkeypatch.chdir("/")
    copy = pickle.loads(pickle.dumps(run))
    assert copy == run
    assert copy.child("sub").read("x") == b"1"
    assert copy.local == tmp_path / "out"
    bucket = Run("s3://bucket/a/b/")
    assert bucket.url == "s3://bucket/a/b"
    assert bucket.child("c").url == "s3://bucket/a/b/c"
    assert bucket.local is None
    filesystem, root = run.filesystem()
    assert filesystem.open_input_file(f"{root}/sub/x").read() == b"1"


@pytest.mark.parametrize("name", ["before_fsync", "after_write", "after_link"])
def test_killed_while_creating(run: Run, name: str) -> None:
    code = "import sys; from raydr.storage import Run; Run(sys.argv[1]).create('a/key', b'x' * 100_000)"
    assert start(code, run.url, failpoint=f"{name}:exit").wait() == 137
    there = run.exists("a/key")
    assert there == (name == "after_link")
    assert [key for key, _ in run.list()] == (["a/key"] if there else [])
    assert run.create("a/key", b"x" * 100_000) != there
    assert run.read("a/key") == b"x" * 100_000
    assert len(run.leftovers(seconds=-1)) == 1
    assert run.leftovers() == []  # too young to be sure that its writer has ended


def test_the_nth_call_fails(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_hits", {})
    monkeypatch.setenv("RAYDR_FAILPOINT", "after_write:raise:2")
    assert run.create("a", b"")
    with pytest.raises(RuntimeError, match="failpoint after_write"):
        run.create("b", b"")
    assert run.create("b", b"")


@pytest.mark.parametrize("write", ["create", "replace"])
def test_an_injected_full_disk_is_one_sentence(run: Run, write: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_hits", {})
    monkeypatch.setenv("RAYDR_FAILPOINT", "before_fsync:enospc")
    with pytest.raises(UserError, match=r"cannot use a/key in .*: the disk is full; .* resume"):
        getattr(run, write)("a/key", b"x")
    assert run.list() == []
    assert run.leftovers(seconds=-1) == []
    getattr(run, write)("a/key", b"x")
    assert run.read("a/key") == b"x"


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounts a small tmpfs, which takes root")
def test_a_really_full_disk(tmp_path: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    folder = str(tmp_path).encode()
    if libc.mount(b"tmpfs", folder, b"tmpfs", 0, b"size=256k") != 0:
        pytest.skip(f"cannot mount: {os.strerror(ctypes.get_errno())}")
    try:
        run = Run(str(tmp_path / "out"))
        assert run.create("small", b"x" * 1000)
        with pytest.raises(UserError, match="the disk is full"):
            run.create("big", b"x" * 1_000_000)
        assert [key for key, _ in run.list()] == ["small"]
        assert run.create("another", b"x" * 100_000)  # the failed write gave its space back
    finally:
        assert libc.umount2(folder, 2) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="drops root's privileges for a moment")
def test_no_permission_is_one_sentence(run: Run) -> None:
    run.create("a", b"x")
    os.seteuid(65534)
    try:
        for call in (lambda: run.create("b", b""), lambda: run.read("a"), lambda: run.list("")):
            with pytest.raises(UserError, match="permission is denied"):
                call()
    finally:
        os.seteuid(0)


def test_a_file_in_the_way_is_one_sentence(run: Run) -> None:
    run.create("a", b"x")
    with pytest.raises(UserError, match=r"cannot use a/b .*a file stands where a folder is needed"):
        run.create("a/b", b"x")


def test_a_durable_write_syncs_file_and_folder(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.create("a/first", b"")
    synced: list[str] = []
    real = os.fsync

    def spy(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    run.create("a/second", b"")
    assert [Path(path).parent.name if "/.tmp/" in path else Path(path).name for path in synced] == [".tmp", "a"]
    synced.clear()
    run.create("a/third", b"", sync=False)
    assert synced == []


def test_importing_storage_is_cheap() -> None:
    code = "import sys, raydr.storage; print({'pyarrow', 'obstore', 'ray', 'torch'} & set(sys.modules))"
    assert start(code).communicate()[0] == "set()\n"
