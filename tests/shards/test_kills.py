"""Writers are killed, fail or race at any step: the table is that of an undisturbed run, and never seen in part."""

import json
import random
import signal
import time

import numpy as np
import pyarrow as pa
import pytest

from raydr import backends, parquet, shards
from raydr.errors import UserError
from raydr.schema import SCORES
from raydr.storage import Run

from .tables import ROWS, commit_all, go, make, writer


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["before_fsync", "after_write", "after_link"])
def test_killed_inside_a_write_then_resumed(run: Run, undisturbed: pa.Table, name: str, nth: int) -> None:
    """Writes alternate: shard 0, its record, shard 1, its record."""
    check_killed_and_resumed(run, undisturbed, f"{name}:exit:{nth}", writes=nth - (name != "after_link"))


@pytest.mark.parametrize(("name", "writes"), [("before_commit", 3), ("after_commit", 4)])
def test_killed_around_the_record_then_resumed(run: Run, undisturbed: pa.Table, name: str, writes: int) -> None:
    check_killed_and_resumed(run, undisturbed, f"{name}:exit:2", writes)


def check_killed_and_resumed(run: Run, undisturbed: pa.Table, failpoint: str, writes: int) -> None:
    process = writer(run, 0, 3, failpoint=failpoint)
    go(process)
    assert process.wait() == 137
    files = [key for key, _ in run.list()]
    assert len(files) == writes
    whole = {key: run.read(key) for key in files}
    for key, data in whole.items():
        assert json.loads(data)["rows"] == ROWS if key.endswith(".json") else parquet.inspect(data)[0] == ROWS
    assert len(shards.commits(run)) == writes // 2
    commit_all(run)
    assert shards.read(run, "scores", SCORES).equals(undisturbed)
    assert {key: run.read(key) for key in files} == whole
    assert len(run.list()) == 6
    assert shards.verify(run) == []


@pytest.mark.parametrize("action", ["raise", "enospc"])
@pytest.mark.parametrize("name", ["before_fsync", "after_write", "after_link", "before_commit", "after_commit"])
def test_failed_then_resumed(
    run: Run, undisturbed: pa.Table, name: str, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "_hits", {})
    monkeypatch.setenv("RAYDR_FAILPOINT", f"{name}:{action}")
    inside = name in ("before_fsync", "after_write", "after_link")
    expected = RuntimeError if action == "raise" else UserError if inside else OSError
    with pytest.raises(expected):
        commit_all(run)
    assert run.leftovers(seconds=-1) == []
    commit_all(run)
    assert shards.read(run, "scores", SCORES).equals(undisturbed)
    assert shards.verify(run) == []


def test_killed_again_and_again_at_random_moments(run: Run) -> None:
    choose, kills = random.Random(7), 0
    while len(shards.commits(run)) < 60:
        process = writer(run, 0, 60)
        go(process)
        time.sleep(choose.uniform(0.01, 0.08) if kills < 5 else 30 * (process.wait() or 0))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 3
    table = shards.read(run, "scores", SCORES)
    expected = pa.concat_tables([make(shard).cast(SCORES) for shard in range(60)])
    assert table.combine_chunks().equals(expected.combine_chunks())
    assert shards.verify(run) == []


def test_two_processes_race_and_agree(run: Run) -> None:
    """Their tables differ, as images made on two kinds of device may: each shard is wholly one writer's."""
    racers = [writer(run, 0, 60), writer(run, 0, 60, offset=1000)]
    for racer in racers:
        go(racer)
    returned = [racer.communicate()[0].split() for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    assert returned[0] == returned[1]
    assert returned[0] == [record.sha256 for record in shards.commits(run).values()]
    scores = shards.read(run, "scores", SCORES)["score"].to_numpy().reshape(60, ROWS) >= 1000
    assert np.all(scores.all(axis=1) == scores.any(axis=1))
    assert shards.verify(run) == []


def test_a_reader_never_sees_part_of_a_shard(run: Run) -> None:
    process = writer(run, 0, 100)
    go(process)
    counts = []
    while process.poll() is None:
        for key, size in run.list("scores"):
            data = run.read(key)
            assert len(data) == size
            assert parquet.inspect(data)[0] == ROWS
        counts.append(shards.read(run, "scores", SCORES, required=False).num_rows)
    assert counts == sorted(counts)
    assert all(count % ROWS == 0 for count in counts)
    assert len(set(counts)) > 2, "the reader was too slow to see the table grow"
    assert shards.read(run, "scores", SCORES).num_rows == 100 * ROWS
