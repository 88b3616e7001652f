"""Real data sets with faults: files that cannot be used, sources that change, readers and drivers that are killed."""

import os
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from fundus.trees import photograph, write
from ingesting import RECIPE, add, few, rows_of, small_cluster

from raydr import cli, shards
from raydr.cluster import ingest, ingest_passes
from raydr.cluster.source_files import CRASHED, prepare_rows, require_survival
from raydr.config import Recipe
from raydr.errors import BudgetExhausted, MissingInput, UserError
from raydr.fundus.preprocess import Unusable
from raydr.fundus.readers.rows import Row
from raydr.images import decode
from raydr.sources import Ingest
from raydr.storage import Run

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module", autouse=True)
def cluster(ray_temp):
    with small_cluster(ray_temp):
        yield


@pytest.fixture
def staged(monkeypatch) -> list[str]:
    """Keys of the shards that the first pass is asked to make."""
    keys: list[str] = []
    whole = ingest.map_shards

    def noting(work, plans, *arguments, **options):
        keys.extend(plan["key"] for plan in plans if work is ingest_passes.stage_shard)
        return whole(work, plans, *arguments, **options)

    monkeypatch.setattr(ingest, "map_shards", noting)
    return keys


def test_too_much_quarantine_fails_and_the_next_try_reads_nothing_twice(tmp_path, capsys, staged) -> None:
    tree = few(tmp_path / "mine")
    write(tree, {"train/0/0.png": b"", "train/1/0.png": b"no photograph"})
    out = tmp_path / "out"
    command = ["ingest", "folder", str(tree), "--recipe", "ddr_sd15", "--out", str(out), "--px", "64"]
    command += ["--shard-size", "8"]
    assert cli.main(command) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "2 of 20 entries of mine (10.0%) cannot be used, over --max-quarantine 2.0%" in said
    assert "1 empty file, 1 not an image" in said
    reasons = {note["key"]: note["reason"] for note in shards.quarantined(Run(str(out)), "real")}
    assert reasons == {"mine/train/0/0.png": "empty file", "mine/train/1/0.png": "not an image"}
    assert shards.commits(Run(str(out)), "real") == {}
    assert shards.completed(Run(str(out)), "real") is None
    assert len(staged) == 3
    assert cli.main([*command, "--max-quarantine", "0.1"]) == 0
    assert len(staged) == 3
    assert len(rows_of(out)) == 18
    assert {row["split"] for row in rows_of(out)} == {"train"}


def test_a_source_mended_before_it_was_added_is_read_again_where_it_changed(tmp_path, staged) -> None:
    tree = few(tmp_path / "mine")
    good = (tree / "train/0/0.png").read_bytes()
    (tree / "train/0/0.png").write_bytes(good[:300])
    strict = Recipe(name="test", ingest=Ingest(source="folder", px=64, shard_size=8, max_quarantine=0.02))
    out = tmp_path / "out"
    with pytest.raises(BudgetExhausted, match=r"1 of 20 entries of mine \(5\.0%\).*1 truncated"):
        add(out, "folder", tree, strict)
    staged.clear()
    (tree / "train/0/0.png").write_bytes(good)
    assert add(out, "folder", tree, strict)["source"]["kept"] == 20
    assert staged == ["staging/mine/000000.parquet"]
    assert shards.quarantined(Run(str(out)), "real") == []


def test_a_damaged_shard_is_made_again_from_the_source(tmp_path) -> None:
    tree, out = few(tmp_path / "mine"), tmp_path / "out"
    add(out, "folder", tree)
    before = rows_of(out)
    victim = out / "real/mine-000001.parquet"
    victim.write_bytes(victim.read_bytes()[:-50])
    run = Run(str(out))
    assert shards.repair(run, shards.verify(run)) == ["real/mine-000001.parquet"]
    with pytest.raises(MissingInput, match="holds mine in part only: run `raydr ingest folder"):
        ingest.ready(RECIPE, run)
    with pytest.raises(UserError, match="holds mine in part only"):
        add(out, "folder", few(tmp_path / "other", first=50))
    assert add(out, "folder", tree)["source"]["added"] == 4
    assert rows_of(out) == before


def cut_before(monkeypatch, pass_) -> None:
    """Let the ingest die before this pass, as a kill would."""
    whole = ingest.map_shards

    def cut(work, plans, *arguments, **options):
        if work is pass_:
            raise RuntimeError("cut")
        return whole(work, plans, *arguments, **options)

    monkeypatch.setattr(ingest, "map_shards", cut)


def test_an_unfinished_source_keeps_the_stages_after_it_waiting(tmp_path, monkeypatch, staged) -> None:
    first, second, out = few(tmp_path / "first"), few(tmp_path / "second", first=40), tmp_path / "out"
    add(out, "folder", first)
    assert shards.completed(Run(str(out)), "real") is not None
    with monkeypatch.context() as patch:
        cut_before(patch, ingest_passes.publish_shard)
        with pytest.raises(RuntimeError, match="cut"):
            add(out, "folder", second)
    assert shards.completed(Run(str(out)), "real") is None
    with pytest.raises(MissingInput, match="holds second in part only"):
        ingest.ready(RECIPE, Run(str(out)))
    staged.clear()
    assert add(out, "folder", second)["source"]["added"] == 20
    assert staged == []
    assert shards.completed(Run(str(out)), "real")["rows"] == 40


def test_a_file_swapped_between_the_passes_is_noticed_by_its_content(tmp_path, monkeypatch) -> None:
    tree, out = few(tmp_path / "mine"), tmp_path / "out"
    with monkeypatch.context() as patch:
        cut_before(patch, ingest_passes.publish_shard)
        with pytest.raises(RuntimeError, match="cut"):
            add(out, "folder", tree)
    ingest_passes.drop(Run(str(out)), "staging/mine/000000.parquet")
    victim = tree / "train/0/0.png"
    data = bytearray(victim.read_bytes())
    # Neither size nor time tells: the last byte differs, and the file is older than the ingest.
    data[-1] ^= 1
    victim.write_bytes(data)
    os.utime(victim, (1_000_000_000, 1_000_000_000))
    with pytest.raises(UserError, match=r"the file of mine/train/0/0 was changed while its source was ingested"):
        add(out, "folder", tree)
    assert shards.completed(Run(str(out)), "real") is None


def test_a_shard_that_took_its_worker_down_twice_is_tried_in_isolation(tmp_path, monkeypatch) -> None:
    seen = []

    def noting(rows, base, px, crop, isolated):
        seen.append(isolated)
        return prepare_rows(rows, base, px, crop)

    monkeypatch.setattr(ingest_passes, "prepare_rows", noting)
    write(tmp_path, {"a.jpg": photograph(1)})
    row = ["a.jpg", "D/a", "D", "train", None, 0, True, None, 9]
    plan = {"key": "staging/D/000000.parquet", "fingerprint": "f", "rows": [row]}
    for _ in range(4):
        ingest_passes.stage_shard(plan, str(tmp_path / "out"), str(tmp_path), 64, "circle")
        ingest_passes.drop(Run(str(tmp_path / "out")), plan["key"])  # as if it had crashed
    assert seen == [False, False, True, True]


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["run", "--recipe", "ddr_sd15"], r"holds no photographs yet: run `raydr ingest ddr PATH --recipe ddr_sd15"),
        (["ingest", "--recipe", "ddr_sd15"], "holds no photographs yet"),
        (["ingest", "ddr", "--recipe", "ddr_sd15"], "raydr ingest ddr lacks the PATH"),
        (["ingest", "kaggle", "/nowhere", "--recipe", "ddr_sd15"], "unknown source 'kaggle'"),
        (["ingest", "ddr", "/nowhere", "--recipe", "ddr_sd15"], "/nowhere does not exist"),
        (["ingest", "ddr", "/nowhere", "--recipe", "phantom"], "replicates are cohorts of phantoms"),
    ],
)
def test_users_mistakes_are_one_sentence(argv, sentence, tmp_path, capsys) -> None:
    import re

    assert cli.main([*argv, "--out", str(tmp_path / "out")]) == 2
    assert re.search(sentence, " ".join(capsys.readouterr().out.split()))


def test_a_vanished_file_is_a_sentence_and_not_a_traceback(tmp_path) -> None:
    row = Row("gone.jpg", "D/gone", "D", "train", None, 0, True, None, 10)
    with pytest.raises(UserError, match=r"gone\.jpg has gone from"):
        prepare_rows([row], str(tmp_path), 64, "circle")


def test_a_file_that_kills_its_reader_is_set_aside(tmp_path) -> None:
    kill = (sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(Unusable) as caught:
        require_survival(b"x", 64, "circle", kill)
    assert (caught.value.reason, caught.value.detail) == (CRASHED, "exit code -9")
    # Isolation changes nothing about what is usable, nor any pixel.
    write(tmp_path, {"a.jpg": photograph(1), "b.jpg": b""})
    rows = [Row(f"{name}.jpg", f"D/{name}", "D", "train", None, 0, True, None, 9) for name in "ab"]
    plain, alone = (prepare_rows(rows, str(tmp_path), 64, "circle", isolated) for isolated in (False, True))
    assert plain == alone
    assert [entry.reason for entry in plain[1]] == ["empty file"]


def test_huge_files_are_not_read(tmp_path) -> None:
    row = Row("a.tif", "D/a", "D", "train", None, 0, True, None, 400_000_000)
    assert prepare_rows([row], str(tmp_path), 64, "circle")[1][0].reason == "absurd size"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_anywhere_the_same_command_gives_the_same_table(tmp_path) -> None:
    tree = few(tmp_path / "mine", per_grade=60)
    argv = ["ingest", "folder", str(tree), "--recipe", "ddr_sd15", "--fold", "None", "--px", "96", "--shard-size", "8"]
    argv += ["--num-folds", "2", "--per-grade", "5"]
    assert cli.main([*argv, "--out", str(tmp_path / "whole")]) == 0
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "raydr", *argv, "--out", str(out)]
    # Twice in the first pass, twice in the second; 38 shards in all.
    for pattern, count in (("staging/*/*.parquet", 4), ("staging/*/*.parquet", 20), ("real/*", 3), ("real/*", 20)):
        with tempfile.TemporaryDirectory(prefix="rd", dir="/tmp", ignore_cleanup_errors=True) as temporary:
            environment = os.environ | {"RAYDR_RAY_TEMP": temporary}
            with (tmp_path / "log").open("w") as log:
                process = subprocess.Popen(command, start_new_session=True, env=environment, stdout=log, stderr=log)
            while len(list(out.glob(pattern))) < count:
                time.sleep(0.02)
                assert process.poll() is None, (tmp_path / "log").read_text()
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            time.sleep(1)
    assert len(list((out / "real").glob("*.parquet"))) < 38
    assert shards.completed(Run(str(out)), "real") is None
    assert cli.main([*argv, "--out", str(out)]) == 0
    ours, theirs = rows_of(out), rows_of(tmp_path / "whole")
    assert len(ours) == 300
    assert ours == theirs
    for shard in sorted((out / "real").glob("*.parquet")):
        table = pq.read_table(shard)
        other = pq.read_table(tmp_path / "whole" / "real" / shard.name)
        for a, b in zip(table["image"].to_pylist(), other["image"].to_pylist(), strict=True):
            np.testing.assert_array_equal(decode(a), decode(b))
    assert shards.verify(Run(str(out))) == []
