"""The same promises on a real S3 server: moto's, on loopback."""

import contextlib
import errno
import http.server
import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from s3_server import serve, use_server

from raydr import backends, locks, shards
from raydr.errors import DamagedData, MissingInput, UserError
from raydr.schema import SCORES
from raydr.storage import Run

FINGERPRINT = "0123456789abcdef"
PLAN = [f"scores/e1/g1-{shard:06d}.parquet" for shard in range(3)]

WRITER = """
import sys
import pyarrow as pa
from raydr import shards
from raydr.schema import SCORES
from raydr.storage import Run

run, count, offset = Run(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
for shard in range(count):
    table = pa.table({
        "sample_id": [f"g/g1/{shard * 4 + row}" for row in range(4)],
        "ensemble_id": ["e1"] * 4,
        "probabilities": [[[0.2] * 5]] * 4,
        "disagreement": [0.0] * 4,
        "score": [offset + shard + row / 8 for row in range(4)],
    })
    print(shards.commit(run, f"scores/e1/g1-{shard:06d}.parquet", table, SCORES, "0123456789abcdef").sha256)
"""


def make(shard: int) -> pa.Table:
    return pa.table(
        {
            "sample_id": [f"g/g1/{shard * 4 + row}" for row in range(4)],
            "ensemble_id": ["e1"] * 4,
            "probabilities": [[[0.2] * 5]] * 4,
            "score": [shard + row / 8 for row in range(4)],
            "disagreement": [0.0] * 4,
        }
    )


def commit_all(run: Run) -> None:
    for key in shards.pending(PLAN, FINGERPRINT, shards.commits(run, "scores")):
        shards.commit(run, key, make(PLAN.index(key)), SCORES, FINGERPRINT)


def start(code: str, *arguments: str, failpoint: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *arguments]
    environment = os.environ | {"RAYDR_FAILPOINT": failpoint, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with serve() as address:
        yield address


@pytest.fixture
def run(s3: str, request: pytest.FixtureRequest) -> Run:
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)
    return Run(f"s3://bucket/tests/{name}")


def test_the_first_writer_wins(run: Run, tmp_path: Path) -> None:
    assert run.create("a/b.json", b"first")
    assert not run.create("a/b.json", b"second")
    assert run.read("a/b.json") == b"first"
    run.replace("a/b.json", b"third")
    assert run.read("a/b.json") == b"third"
    assert run.exists("a/b.json")
    run.delete("a/b.json")
    run.delete("a/b.json")
    assert not run.exists("a/b.json")
    (tmp_path / "big").write_bytes(b"x" * 11_000_000)  # beyond obstore's multipart threshold of 5 MiB
    assert run.create("big", tmp_path / "big")
    assert not run.create("big", tmp_path / "big")
    assert run.list("big") == []
    assert run.list() == [("big", 11_000_000)]
    with pytest.raises(MissingInput, match=r"real/x is not in s3://bucket/tests"):
        run.read("real/x")
    with pytest.raises(UserError, match="no valid name"):
        run.create("../escape", b"")


def test_listing_is_by_folder_and_inside_the_run(run: Run) -> None:
    for key in ("real/b", "real/a/c", "realistic/d"):
        run.create(key, b"xy")
    assert run.list("real") == [("real/a/c", 2), ("real/b", 2)]
    assert [key for key, _ in run.list()] == ["real/a/c", "real/b", "realistic/d"]
    assert run.child("real").list() == [("a/c", 2), ("b", 2)]
    assert run.read_many(["real/b", "gone"]) == {"real/b": b"xy"}
    assert pickle.loads(pickle.dumps(run)).read("real/b") == b"xy"
    filesystem, root = run.filesystem()
    assert filesystem.open_input_file(f"{root}/real/b").read() == b"xy"


def test_commit_read_verify_and_repair(run: Run) -> None:
    commit_all(run)
    shards.complete(run, "scores", PLAN)
    whole = shards.read(run, "scores", SCORES)
    assert whole["sample_id"].to_pylist() == [f"g/g1/{index}" for index in range(12)]
    assert shards.read(run, "scores", SCORES, ["score"], pc.field("score") >= 2)["score"].to_pylist() == [
        2,
        2.125,
        2.25,
        2.375,
    ]
    assert shards.record_start(run, PLAN[0], "n1") == 1
    assert shards.record_start(run, PLAN[0], "n1") == 2
    assert shards.starts(run) == {PLAN[0]: ["n1", "n1"]}
    run.replace(PLAN[0], run.read(PLAN[0])[:-10])
    run.delete(PLAN[1])
    with pytest.raises(DamagedData, match="raydr repair s3://bucket"):
        shards.read(run, "scores", SCORES)
    problems = shards.verify(run)
    assert [(problem.key, problem.kind) for problem in problems] == [(PLAN[0], "damaged"), (PLAN[1], "missing")]
    assert shards.repair(run, problems) == PLAN[:2]
    assert shards.pending(PLAN, FINGERPRINT, shards.commits(run)) == PLAN[:2]
    commit_all(run)
    assert shards.read(run, "scores", SCORES).equals(whole)
    assert shards.verify(run) == []


@pytest.mark.parametrize(
    ("failpoint", "objects"),
    [("after_write:exit:2", 1), ("after_link:exit:3", 3), ("before_commit:exit:2", 3), ("after_commit:exit:2", 4)],
)
def test_killed_then_resumed(run: Run, failpoint: str, objects: int) -> None:
    process = start(WRITER, run.url, "3", "0", failpoint=failpoint)
    go(process)
    assert process.wait() == 137
    before = {key: run.read(key) for key, _ in run.list()}
    assert len(before) == objects
    commit_all(run)
    assert shards.read(run, "scores", SCORES)["sample_id"].to_pylist() == [f"g/g1/{index}" for index in range(12)]
    assert {key: run.read(key) for key in before} == before
    assert len(run.list()) == 6
    assert shards.verify(run) == []


def test_two_processes_race_and_agree(run: Run) -> None:
    racers = [start(WRITER, run.url, "25", offset) for offset in ("0", "1000")]
    for racer in racers:
        go(racer)
    returned = [racer.communicate()[0].split() for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    assert returned[0] == returned[1]
    scores = shards.read(run, "scores", SCORES)["score"].to_numpy().reshape(25, 4) >= 1000
    assert (scores.all(axis=1) == scores.any(axis=1)).all()
    assert shards.verify(run) == []


def test_weights_go_up_and_come_down(run: Run, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    (weights / "unet").mkdir(parents=True)
    (weights / "unet" / "model.safetensors").write_bytes(os.urandom(9_000_000))
    assert not run.uploaded("generators/g1")
    with pytest.raises(MissingInput, match="generators/g1"):
        run.folder("generators/g1", tmp_path / "cache")
    assert run.upload(weights, "generators/g1")
    assert not run.upload(weights, "generators/g1")
    copy = run.folder("generators/g1", tmp_path / "cache")
    name = Path("unet") / "model.safetensors"
    assert (copy / name).read_bytes() == (weights / name).read_bytes()
    run.replace("generators/g1/unet/model.safetensors", b"other")
    assert run.folder("generators/g1", tmp_path / "cache") == copy  # not fetched again
    with pytest.raises(DamagedData, match="unet/model"):
        run.folder("generators/g1", tmp_path / "cache2")


def test_a_bucket_that_does_not_exist(s3: str) -> None:
    run = Run("s3://nobucket/x")
    with pytest.raises(UserError, match="bucket of s3://nobucket/x does not exist"):
        run.create("a", b"")
    with pytest.raises(MissingInput, match="s3://nobucket/x"):
        run.read("a")
    with pytest.raises(UserError, match="s3://nobucket/x: the bucket does not exist"):
        run.list()


# The lock

HOLD = """
import sys
from raydr.storage import Run
with Run(sys.argv[1]).lock("raydr synthesize"):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(locks, "EXPIRY_SECONDS", 0.5)


def test_the_second_driver_is_told_who_the_first_is(run: Run) -> None:
    first = start(HOLD, run.url)
    with pytest.raises(UserError, match=rf"raydr synthesize.*pid {first.pid}.*since 20"), run.lock("raydr sweep"):
        pytest.fail("two drivers hold the lock")
    with run.lock("raydr sweep", force=True):
        pass
    first.communicate("\n")
    with run.lock("raydr sweep"):
        assert run.read_json("_lock")["purpose"] == "raydr sweep"
    assert not run.exists("_lock")


def test_a_killed_driver_of_this_host_frees_its_lock_at_once(run: Run) -> None:
    first = start(HOLD, run.url)
    first.kill()
    first.wait()
    started = time.monotonic()
    with run.lock("again"):
        assert time.monotonic() - started < 5
        assert run.read_json("_lock")["pid"] == os.getpid()


def test_a_folder_that_no_one_can_make_is_named(tmp_path, monkeypatch):
    """Below /proc, for one, even root makes no folder, and the system says ENOENT."""
    run = Run(tmp_path / "out")

    def refused(*_, **__):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(Path, "mkdir", refused)
    monkeypatch.setattr(os, "mkdir", refused)
    for write in (lambda: run.lock("x").__enter__(), lambda: run.create("a/b", b"x"), lambda: run.replace("a/b", b"x")):
        with pytest.raises(UserError, match=r"cannot write .* no folder can be made there; choose another --out"):
            write()


@pytest.mark.usefixtures("fast")
def test_the_heartbeat_keeps_a_lock_beyond_its_expiry(run: Run) -> None:
    with run.lock("long") as lost:
        time.sleep(1.0)
        with pytest.raises(UserError, match="`long`"), run.lock("second"):
            pass
        assert not lost.is_set()
    assert not run.exists("_lock")


@pytest.mark.usefixtures("fast")
def test_a_lock_of_a_dead_host_is_taken_after_its_expiry(run: Run) -> None:
    holder = {"purpose": "gone", "host": "elsewhere", "pid": 1, "started": "2020", "token": "t", "beat": time.time()}
    run.create_json("_lock", holder)
    with pytest.raises(UserError, match="`gone`"), run.lock("early"):
        pass
    time.sleep(0.6)
    with run.lock("late"):
        assert run.read_json("_lock")["purpose"] == "late"


@pytest.mark.usefixtures("fast")
def test_a_live_lock_whose_clock_is_behind_is_not_taken(run: Run) -> None:
    """The holder's clock stands still an hour ago, but its object changes: the watcher sees it live."""
    stop = threading.Event()

    def live() -> None:
        count = 0
        while not stop.wait(0.05):
            count += 1
            holder = {"purpose": "slow clock", "host": "x", "pid": 1, "started": "s", "token": "t", "n": count}
            run.replace_json("_lock", holder | {"beat": time.time() - 3600})

    thread = threading.Thread(target=live)
    thread.start()
    try:
        time.sleep(0.1)
        with pytest.raises(UserError, match="`slow clock`"), run.lock("second"):
            pytest.fail("taken from a living driver")
    finally:
        stop.set()
        thread.join()


@pytest.mark.usefixtures("fast")
def test_whoever_loses_the_lock_is_told_and_leaves_the_winner_alone(run: Run) -> None:
    with run.lock("loser") as lost:
        run.replace_json("_lock", {"purpose": "winner", "token": "w", "beat": time.time()})
        assert lost.wait(5)
    assert run.read_json("_lock")["purpose"] == "winner"


# Credentials


@contextlib.contextmanager
def answering(status: int, body: str) -> Iterator[str]:
    """A server that answers everything with `status` and `body`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_PUT = do_HEAD = do_DELETE = answer

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "reason"),
    [(403, "refuses these credentials"), (401, "refuses these credentials"), (400, "does not answer as it should")],
)
def test_refused_credentials_are_one_sentence_without_them(
    status: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = "<Error><Code>SignatureDoesNotMatch</Code><AWSAccessKeyId>AKIAKEYFORTESTS</AWSAccessKeyId></Error>"
    with answering(status, body) as address:
        use_server(monkeypatch, address)
        run = Run(f"s3://bucket/refused{status}")
        for call in (lambda: run.create("a", b"x"), lambda: run.read("a"), lambda: run.list()):
            with pytest.raises(UserError, match=reason) as caught:
                call()
            said = str(caught.value) + repr(caught.value.__cause__) + repr(run) + json.dumps(run.url)
            assert "AKIAKEYFORTESTS" not in said
            assert "secretfortests" not in said
    assert b"secretfortests" not in pickle.dumps(run)


@pytest.mark.parametrize("arrived", [False, True])
def test_a_create_whose_connection_broke_is_sent_again(run: Run, monkeypatch, arrived: bool) -> None:
    """obstore repeats other requests by itself. Where the broken one had arrived, who creates finds its own bytes."""
    import obstore
    from obstore.exceptions import GenericError

    put, broken = obstore.put, []

    def breaks(*arguments, **options):
        if len(broken) < 2:
            broken.append(arguments[1])
            if arrived:
                with contextlib.suppress(Exception):
                    put(*arguments, **options)
            raise GenericError("Generic S3 error: error sending request for url (http://x/y)")
        return put(*arguments, **options)

    monkeypatch.setattr(obstore, "put", breaks)
    monkeypatch.setattr(backends, "RETRY_SECONDS", (0.01, 0.01, 0.01))
    assert run.create("a/b", b"1") is not arrived
    assert run.read("a/b") == b"1"
    assert shards.commit(run, PLAN[0], make(0), SCORES, FINGERPRINT).rows == 4
    assert shards.verify(run) == []
    assert len(broken) == 2


def test_a_network_that_stays_away_is_one_sentence(run: Run, monkeypatch) -> None:
    import obstore
    from obstore.exceptions import GenericError

    tries = []

    def breaks(*arguments, **options):
        tries.append(1)
        raise GenericError("Generic S3 error: error sending request for url (http://x/y)")

    monkeypatch.setattr(obstore, "put", breaks)
    monkeypatch.setattr(backends, "RETRY_SECONDS", (0.01, 0.01))
    with pytest.raises(UserError, match="same command again to resume"):
        run.create("a/b", b"1")
    assert len(tries) == 3


def test_an_address_follows_the_environment_to_another_server() -> None:
    run = Run("s3://bucket/moved")
    for number in range(2):
        with serve():
            assert run.list() == []
            assert run.create(f"{number}", b"x")
            assert run.read(f"{number}") == b"x"


def test_a_credentials_file_is_used(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("boto3")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    (tmp_path / "credentials").write_text("[default]\naws_access_key_id = AKIAFROMFILE\naws_secret_access_key = s\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    run = Run("s3://bucket/from-file")
    assert run.create("a", b"x")
    filesystem, root = run.filesystem()
    assert filesystem.open_input_file(f"{root}/a").read() == b"x"


def test_an_object_that_stands_for_the_run_s_own_folder_is_no_key(run: Run) -> None:
    """pyarrow leaves one, and Ray Train and Tune write through pyarrow."""
    run.create("a", b"x")
    filesystem, root = run.filesystem()
    filesystem.create_dir(root)
    assert run.list() == [("a", 1)]
