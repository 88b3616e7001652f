import dataclasses
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raydr import backends, images, parquet, schema, shards
from raydr.errors import DamagedData, IdentityMismatch, MissingInput, UserError
from raydr.ledger import parse
from raydr.schema import SCORES, SYNTHETIC
from raydr.storage import Run

FINGERPRINT = "0123456789abcdef"
PLAN = [f"scores/e1/g1-{shard:06d}.parquet" for shard in range(3)]
ROWS = 8

# The same table in a process of its own: argv = url, first shard, one past the last, score offset.
WRITER = """
import sys
import pyarrow as pa
from raydr import shards
from raydr.schema import SCORES
from raydr.storage import Run

def table(shard, offset=0.0, rows=8):
    return pa.table({
        "sample_id": [f"g/g1/{shard * 8 + row}" for row in range(rows)],
        "ensemble_id": ["e1"] * rows,
        "probabilities": [[[0.1, 0.2, 0.3, 0.2, 0.2]] * 2] * rows,
        "score": [offset + shard + row / 100 for row in range(rows)],
        "disagreement": [0.0] * rows,
    })

if __name__ == "__main__":
    run, offset = Run(sys.argv[1]), float(sys.argv[4])
    print("ready", flush=True)
    sys.stdin.readline()
    for shard in range(int(sys.argv[2]), int(sys.argv[3])):
        key = f"scores/e1/g1-{shard:06d}.parquet"
        record = shards.commit(run, key, table(shard, offset), SCORES, "0123456789abcdef")
        print(record.sha256, flush=True)
"""


def make(shard: int, offset: float = 0.0, rows: int = ROWS) -> pa.Table:
    """Rows of `scores`, score = offset + shard + row / 100."""
    return pa.table(
        {
            "sample_id": [f"g/g1/{shard * ROWS + row}" for row in range(rows)],
            "ensemble_id": ["e1"] * rows,
            "probabilities": [[[0.1, 0.2, 0.3, 0.2, 0.2]] * 2] * rows,
            "score": [offset + shard + row / 100 for row in range(rows)],
            "disagreement": [0.0] * rows,
        }
    )


def commit_all(run: Run) -> None:
    """What a stage does: plan minus commits."""
    for key in shards.pending(PLAN, FINGERPRINT, shards.commits(run, "scores")):
        shards.commit(run, key, make(PLAN.index(key)), SCORES, FINGERPRINT)


def writer(run: Run, first: int, end: int, offset: float = 0.0, failpoint: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, run.url, str(first), str(end), str(offset)]
    environment = os.environ | {"RAYDR_FAILPOINT": failpoint, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(str(tmp_path / "out"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    run = Run(str(tmp_path_factory.mktemp("undisturbed")))
    commit_all(run)
    return shards.read(run, "scores", SCORES)


@pytest.fixture
def committed(run: Run) -> Run:
    commit_all(run)
    return run


def synthetic(rows: int) -> pa.Table:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (rows, 16, 16, 3), dtype=np.uint8)
    columns = {item.name: pa.nulls(rows, item.type) for item in SYNTHETIC}
    columns["sample_id"] = pa.array([f"g/g3/{row}" for row in range(rows)])
    columns["grade"] = pa.array([3] * rows, pa.int8())
    columns["seed"] = pa.array([2**63 + row for row in range(rows)], pa.uint64())
    columns["sampler"] = pa.array([{"name": "dpm++", "steps": 10, "guidance": 2.0, "batch": 16}] * rows)
    columns["image"] = pa.array([images.encode(image) for image in pixels], pa.large_binary())
    columns["probabilities"] = pa.array([[[0.5, 0.5, 0, 0, 0]]] * rows, pa.list_(pa.list_(pa.float32())))
    return pa.table(columns)


# Layout


def test_a_shard_is_one_row_group_with_raw_images() -> None:
    data = parquet.to_parquet(synthetic(5).cast(SYNTHETIC))
    metadata = pq.read_metadata(io.BytesIO(data))
    assert (metadata.num_row_groups, metadata.num_rows) == (1, 5)
    group = metadata.row_group(0)
    columns = [group.column(index) for index in range(metadata.num_columns)]
    paths = [column.path_in_schema for column in columns]
    assert "sampler.guidance" in paths
    assert "probabilities.list.element.list.element" in paths
    for column in columns:
        raw = column.path_in_schema == "image"
        assert column.compression == ("UNCOMPRESSED" if raw else "ZSTD")
        assert column.has_dictionary_page == (not raw and column.physical_type != "BOOLEAN")
        assert column.is_stats_set != raw
    assert pq.read_table(io.BytesIO(data)).schema.field("image").type == pa.large_binary()
    assert parquet.to_parquet(synthetic(5).cast(SYNTHETIC)) == data
    assert pq.read_metadata(io.BytesIO(parquet.to_parquet(SCORES.empty_table()))).num_rows == 0


def test_pandas_reads_a_shard(run: Run) -> None:
    table = synthetic(3)
    shards.commit(run, "synthetic/g1/g3-000000.parquet", table, SYNTHETIC, FINGERPRINT)
    frame = pd.read_parquet(run.path("synthetic/g1/g3-000000.parquet"))
    assert frame["seed"].tolist() == [2**63, 2**63 + 1, 2**63 + 2]
    assert frame["sampler"][0]["steps"] == 10
    assert images.decode(frame["image"][2]).shape == (16, 16, 3)


def test_duckdb_reads_a_run(run: Run) -> None:
    duckdb = pytest.importorskip("duckdb")
    for shard in range(2):
        shards.commit(run, f"synthetic/g1/g3-{shard:06d}.parquet", synthetic(3), SYNTHETIC, FINGERPRINT)
    query = "select count(*), sum(octet_length(image)), max(probabilities[1][2]), max(sampler.steps), max(seed) from "
    rows = duckdb.sql(f"{query} '{run.url}/synthetic/*/*.parquet'").fetchall()
    size = sum(len(image) for image in synthetic(3)["image"].to_pylist())
    assert rows == [(6, 2 * size, 0.5, 10, 2**63 + 2)]


def test_hugging_face_datasets_shows_the_images(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    shards.commit(run, "synthetic/g1/g3-000000.parquet", synthetic(3), SYNTHETIC, FINGERPRINT)
    path = str(run.path("synthetic/g1/g3-000000.parquet"))
    loaded = datasets.load_dataset("parquet", data_files=path, split="train", cache_dir=str(tmp_path / "cache"))
    image = loaded.cast_column("image", datasets.Image())[1]["image"]
    assert np.array_equal(np.asarray(image), images.decode(synthetic(3)["image"][1].as_py()))


# Commit, read, resume


def test_commit_and_read(run: Run) -> None:
    record = shards.commit(run, PLAN[1], make(1), SCORES, FINGERPRINT, {"seconds": 1.5, "node": "n1"})
    data = run.read(PLAN[1])
    assert record == shards.Commit(
        PLAN[1],
        ROWS,
        len(data),
        record.sha256,
        FINGERPRINT,
        parquet.schema_hash(SCORES),
        {"seconds": 1.5, "node": "n1"},
    )
    assert parquet.inspect(data) == (ROWS, FINGERPRINT, parquet.schema_hash(SCORES))
    assert shards.commits(run) == {PLAN[1]: record}
    assert shards.commits(run, "scores/e1") == {PLAN[1]: record}
    assert shards.commits(run, "scores/e2") == {}
    assert [key for key, _ in run.list()] == ["_commits/scores/e1/g1-000001.json", PLAN[1]]
    table = shards.read(run, "scores", SCORES)
    assert table.schema.remove_metadata() == SCORES
    assert table["score"].to_pylist() == pytest.approx([1 + row / 100 for row in range(ROWS)])


def test_read_selects_columns_and_rows_in_key_order(run: Run) -> None:
    for shard in (2, 0, 1):
        shards.commit(run, PLAN[shard], make(shard), SCORES, FINGERPRINT)
    table = shards.read(run, "scores", SCORES, columns=["sample_id"], filter=pc.field("score") >= 1.045)
    assert table.column_names == ["sample_id"]
    wanted = [f"g/g1/{index}" for index in [13, 14, 15, *range(16, 24)]]
    assert table["sample_id"].to_pylist() == wanted
    assert shards.dataset(run, "scores", SCORES).count_rows() == 3 * ROWS


def test_shards_that_a_filter_rules_out_are_not_read(committed: Run) -> None:
    flip(committed, PLAN[0])  # its pages; the footer with the statistics stays
    late = pc.field("score") >= 1
    assert shards.read(committed, "scores", SCORES, filter=late).num_rows == 2 * ROWS
    with pytest.raises(DamagedData, match="raydr repair"):
        shards.read(committed, "scores", SCORES)


def test_uncommitted_shards_are_not_read(committed: Run) -> None:
    committed.delete(shards.record_key(PLAN[2]))
    assert shards.read(committed, "scores", SCORES).num_rows == 2 * ROWS
    with pytest.raises(MissingInput, match="no committed synthetic"):
        shards.read(committed, "synthetic", SYNTHETIC)
    assert shards.read(committed, "synthetic", SYNTHETIC, required=False) == SYNTHETIC.empty_table()


def test_other_columns_are_refused(committed: Run) -> None:
    with pytest.raises(UserError, match="columns of another version of raydr"):
        shards.read(committed, "scores", SCORES.append(pa.field("new", pa.int8())))
    with pytest.raises(ValueError, match="missing"):
        shards.commit(committed, "scores/e1/x.parquet", make(0).drop(["score"]), SCORES, FINGERPRINT)
    with pytest.raises(ValueError, match="unexpected"):
        shards.commit(
            committed, "scores/e1/x.parquet", make(0).append_column("x", make(0)["score"]), SCORES, FINGERPRINT
        )
    assert not committed.exists("scores/e1/x.parquet")


def test_a_schema_hash_sees_names_order_and_types_only() -> None:
    base = pa.schema([("a", pa.int8()), ("b", pa.list_(pa.float32()))])
    assert parquet.schema_hash(base.with_metadata({"x": "y"})) == parquet.schema_hash(base)
    renamed_item = pa.schema([("a", pa.int8()), ("b", pa.list_(pa.field("element", pa.float32())))])
    assert parquet.schema_hash(renamed_item) == parquet.schema_hash(base)
    others = [
        pa.schema([("b", pa.list_(pa.float32())), ("a", pa.int8())]),
        pa.schema([("a", pa.int16()), ("b", pa.list_(pa.float32()))]),
        pa.schema([("a", pa.int8()), ("b", pa.list_(pa.float64()))]),
        pa.schema([("a", pa.int8()), ("c", pa.list_(pa.float32()))]),
    ]
    assert len({parquet.schema_hash(schema) for schema in [base, *others]}) == 5


def test_pending_is_plan_minus_commits_and_refuses_another_fingerprint(committed: Run) -> None:
    committed.delete(shards.record_key(PLAN[1]))
    done = shards.commits(committed)
    assert shards.pending(reversed([*PLAN, "scores/e1/more.parquet"]), FINGERPRINT, done) == [
        "scores/e1/more.parquet",
        PLAN[1],
    ]
    with pytest.raises(IdentityMismatch, match=f"{PLAN[0]}.*{FINGERPRINT}.*feedfeedfeedfeed"):
        shards.pending(PLAN, "feedfeedfeedfeed", done)


def test_another_fingerprint_is_refused_when_committing(committed: Run) -> None:
    for without_record in (False, True):
        if without_record:
            committed.delete(shards.record_key(PLAN[0]))
        with pytest.raises(IdentityMismatch, match=f"{FINGERPRINT}.*feedfeedfeedfeed"):
            shards.commit(committed, PLAN[0], make(0), SCORES, "feedfeedfeedfeed")
    assert shards.commit(committed, PLAN[0], make(0), SCORES, FINGERPRINT).rows == ROWS


@pytest.mark.parametrize("key", ["../evil.parquet", "scores/../../evil.parquet", "/tmp/evil.parquet", "a\0.parquet"])
def test_keys_cannot_leave_the_run(run: Run, key: str) -> None:
    for call in (
        lambda: shards.commit(run, key, make(0), SCORES, FINGERPRINT),
        lambda: shards.record_start(run, key, "n"),
        lambda: shards.quarantine(run, key, "k", "r", "d"),
        lambda: shards.read(run, key, SCORES),
    ):
        with pytest.raises(UserError, match="no valid name"):
            call()
    assert not Path(run.url).exists()


# Kills and races


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


# Leftovers and damage


def flip(run: Run, key: str) -> None:
    """Change one bit of the last page (of `score`): the footer stays readable, the checksum does not fit."""
    data = bytearray(run.read(key))
    column = pq.read_metadata(io.BytesIO(data)).row_group(0).column(3)
    data[column.dictionary_page_offset + column.total_compressed_size - 1] ^= 1
    run.replace(key, bytes(data))


def flip_first(run: Run, key: str) -> None:
    """Change one bit of the leading magic bytes, which readers of Parquet do not look at."""
    run.replace(key, b"Q" + run.read(key)[1:])


def truncate(run: Run, key: str) -> None:
    run.replace(key, run.read(key)[:-10])


def inode(run: Run, key: str) -> int:
    return run.path(key).stat().st_ino


def test_a_valid_shard_without_a_record_is_adopted(committed: Run) -> None:
    committed.delete(shards.record_key(PLAN[0]))
    committed.replace(PLAN[0], committed.read(PLAN[0]))
    before = inode(committed, PLAN[0])
    other = shards.commit(committed, PLAN[0], make(0, offset=5), SCORES, FINGERPRINT)
    assert inode(committed, PLAN[0]) == before
    assert shards.read(committed, "scores", SCORES)["score"][0].as_py() == 0  # theirs, not ours
    assert other == shards.commits(committed)[PLAN[0]]
    assert shards.verify(committed) == []


@pytest.mark.parametrize("damage", [truncate, flip, Run.delete])
def test_an_untrusted_damaged_shard_is_written_over(committed: Run, undisturbed: pa.Table, damage) -> None:
    committed.delete(shards.record_key(PLAN[0]))
    damage(committed, PLAN[0])
    shards.commit(committed, PLAN[0], make(0), SCORES, FINGERPRINT)
    assert shards.read(committed, "scores", SCORES).equals(undisturbed)
    assert shards.verify(committed) == []


def test_an_untrusted_shard_with_other_rows_is_not_decided_silently(committed: Run) -> None:
    committed.delete(shards.record_key(PLAN[0]))
    with pytest.raises(DamagedData, match=f"{PLAN[0]}.* 8 rows .* 5 rows.*raydr repair"):
        shards.commit(committed, PLAN[0], make(0, rows=5), SCORES, FINGERPRINT)


def test_a_committed_shard_is_never_written_over(committed: Run) -> None:
    for damage in (flip_first, flip, truncate):
        damage(committed, PLAN[0])
        before = committed.read(PLAN[0])
        with pytest.raises(DamagedData, match=f"{PLAN[0]}.*raydr repair"):
            shards.commit(committed, PLAN[0], make(0), SCORES, FINGERPRINT)
        assert committed.read(PLAN[0]) == before


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (truncate, "damaged"),
        (flip, "damaged"),
        (flip_first, "damaged"),
        (Run.delete, "missing"),
        (lambda run, key: truncate(run, shards.record_key(key)), "record"),
        (lambda run, key: run.replace_json(shards.record_key(key), {"key": key}), "record"),
    ],
)
def test_damage_is_found_repaired_and_redone(committed: Run, undisturbed: pa.Table, damage, kind: str) -> None:
    shards.complete(committed, "scores", PLAN)
    damage(committed, PLAN[1])
    kept = {
        key: inode(committed, key) for key in PLAN if committed.exists(key) and (key != PLAN[1] or kind == "record")
    }
    if damage is not flip_first:  # there only the hash can tell
        with pytest.raises(DamagedData, match="raydr repair"):
            shards.read(committed, "scores", SCORES)
    problems = shards.verify(committed)
    assert [(problem.key, problem.kind) for problem in problems] == [(PLAN[1], kind)]
    assert shards.repair(committed, problems) == [PLAN[1]]
    assert shards.completed(committed, "scores") is None
    assert shards.pending(PLAN, FINGERPRINT, shards.commits(committed)) == [PLAN[1]]
    commit_all(committed)
    assert {key: inode(committed, key) for key in kept} == kept
    assert shards.read(committed, "scores", SCORES).equals(undisturbed)
    assert shards.verify(committed) == []


def test_a_record_that_contradicts_its_shard_is_found(committed: Run, undisturbed: pa.Table) -> None:
    record = committed.read_json(shards.record_key(PLAN[1]))
    committed.replace_json(shards.record_key(PLAN[1]), record | {"rows": 7})
    with pytest.raises(DamagedData, match="row counts"):
        shards.read(committed, "scores", SCORES)
    problems = shards.verify(committed)
    assert [(problem.key, problem.kind) for problem in problems] == [(PLAN[1], "record")]
    shards.repair(committed, problems)
    commit_all(committed)
    assert shards.read(committed, "scores", SCORES).equals(undisturbed)


def test_orphans_are_reported_and_only_unreadable_ones_deleted(committed: Run) -> None:
    for key in PLAN[:2]:
        committed.delete(shards.record_key(key))
    truncate(committed, PLAN[1])
    problems = shards.verify(committed)
    assert [(problem.key, problem.kind) for problem in problems] == [(PLAN[0], "orphan"), (PLAN[1], "orphan")]
    shards.repair(committed, problems)
    assert committed.exists(PLAN[0])
    assert not committed.exists(PLAN[1])
    commit_all(committed)
    assert shards.verify(committed) == []


def test_shards_of_another_version_are_reported_and_left_alone(run: Run) -> None:
    old = pa.schema([("sample_id", pa.string())])
    shards.commit(run, PLAN[0], make(0).select(["sample_id"]), old, FINGERPRINT)
    problems = shards.verify(run)
    assert [problem.kind for problem in problems] == ["schema"]
    assert shards.repair(run, problems) == []
    assert run.exists(PLAN[0])


def test_verify_takes_a_prefix_and_reports_progress(committed: Run) -> None:
    shards.commit(committed, "trials/x/a.parquet", make(0), SCORES, FINGERPRINT)
    for key in (PLAN[0], "trials/x/a.parquet"):
        truncate(committed, key)
    seen: list[tuple[int, int]] = []
    assert [problem.key for problem in shards.verify(committed, "scores/e1", lambda *at: seen.append(at))] == [PLAN[0]]
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert [problem.key for problem in shards.verify(committed, "trials")] == ["trials/x/a.parquet"]
    assert [problem.key for problem in shards.verify(committed)] == [PLAN[0], "trials/x/a.parquet"]
    assert shards.verify(committed, "real") == []


def test_a_manifest_proves_completeness(committed: Run) -> None:
    with pytest.raises(MissingInput, match=r"1 of 4 shards of scores .* scores/e1/more\.parquet"):
        shards.complete(committed, "scores", [*PLAN, "scores/e1/more.parquet"])
    assert shards.completed(committed, "scores") is None
    shards.complete(committed, "scores", PLAN)
    manifest = shards.completed(committed, "scores")
    assert manifest is not None
    assert (manifest["num_shards"], manifest["rows"]) == (3, 24)
    assert manifest["shards"] == {key: record.sha256 for key, record in shards.commits(committed).items()}
    committed.delete(shards.record_key(PLAN[2]))
    committed.delete(PLAN[2])
    problems = shards.verify(committed)
    assert [(problem.key, problem.kind) for problem in problems] == [(PLAN[2], "missing")]
    shards.repair(committed, problems)
    assert shards.completed(committed, "scores") is None


def test_a_bad_manifest_is_withdrawn_and_nothing_else(committed: Run) -> None:
    name = "_commits/scores/_complete.json"
    values: list[object] = [{"shards": dict.fromkeys(PLAN, "0" * 64)}, {}, [], {"shards": 3}]
    for value in values:
        committed.replace_json(name, value)
        problems = shards.verify(committed)
        assert {(problem.key, problem.kind) for problem in problems} == {(name, "manifest")}
        assert shards.repair(committed, problems) == []
        assert shards.verify(committed) == []


# Hostile bytes

record_values: st.SearchStrategy[object] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
record_objects = st.fixed_dictionaries(
    {},
    optional={item.name: record_values for item in dataclasses.fields(shards.Commit)} | {"more": record_values},
)


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.binary(max_size=60), record_objects.map(json.dumps).map(str.encode)))
def test_a_hostile_record_is_a_commit_of_its_key_or_refused(data: bytes) -> None:
    try:
        record = parse(Run("/nowhere"), PLAN[0], data)
    except DamagedData:
        return
    assert record.key == PLAN[0]


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_hostile_shard_is_whole_or_refused(data: st.DataObject) -> None:
    whole = parquet.to_parquet(make(0).cast(SCORES).replace_schema_metadata({"raydr.fingerprint": FINGERPRINT}))
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.sampled_from([len(whole), data.draw(st.integers(0, len(whole)))]))
    try:
        rows, fingerprint, _ = parquet.inspect(bytes(damaged[:end]))
    except parquet.UNREADABLE:
        return
    assert isinstance(fingerprint, str)
    assert rows >= 0


# Notes


def test_the_first_reason_for_quarantine_stays(run: Run) -> None:
    shards.quarantine(run, "real", "b/../weird name\n.jpg", "truncated", "at byte 3")
    shards.quarantine(run, "real", "a.jpg", "bomb", "")
    shards.quarantine(run, "real", "a.jpg", "another", "")
    shards.quarantine(run, "synthetic", "g3-000001", "crashed", "3 starts")
    assert shards.quarantined(run, "real") == [
        {"table": "real", "key": "a.jpg", "reason": "bomb", "detail": ""},
        {"table": "real", "key": "b/../weird name\n.jpg", "reason": "truncated", "detail": "at byte 3"},
    ]
    assert shards.quarantined(run, "scores") == []


def test_starts_are_counted_by_shard_and_node(run: Run) -> None:
    assert shards.starts(run) == {}
    assert shards.record_start(run, PLAN[0], "node:10.0.0.1") == 1
    assert shards.record_start(run, PLAN[1], "n2") == 1
    assert shards.record_start(run, PLAN[0], "../n2") == 2
    assert shards.record_start(Run(run.url), PLAN[0], "") == 3
    assert shards.starts(run) == {PLAN[0]: ["node-10.0.0.1", "..-n2", ""], PLAN[1]: ["n2"]}
    assert shards.starts(run, "scores/e1") == shards.starts(run)
    assert shards.starts(run, "real") == {}


@pytest.mark.slow
def test_a_thousand_small_shards_take_seconds(run: Run) -> None:
    started = time.perf_counter()
    for shard in range(1000):
        shards.commit(run, f"scores/e1/g1-{shard:06d}.parquet", make(shard), SCORES, FINGERPRINT)
    writing = time.perf_counter() - started
    assert len(shards.commits(run)) == 1000
    assert shards.verify(run) == []
    checking = time.perf_counter() - started - writing
    print(f"1000 shards: commit {writing:.2f} s, read records and verify {checking:.2f} s")
    assert writing < 60


@pytest.mark.parametrize(("whole", "prefix", "columns"), [(SYNTHETIC, "synthetic/g1", 21), (SCORES, "scores/e1", 4)])
def test_shards_of_earlier_versions_read_beside_new_ones(whole, prefix, columns, tmp_path):
    """Without the members' disagreement, which is null then; nothing is to be made again."""
    run, earlier = Run(tmp_path), next(item for item in schema.versions(whole) if len(item) == columns)
    for number, written in enumerate((earlier, whole)):
        table = pa.table({item.name: pa.nulls(1, item.type) for item in whole})
        table = table.set_column(whole.get_field_index("disagreement"), "disagreement", pa.array([0.25], pa.float32()))
        key = f"{prefix}/g3-{number:06d}.parquet"
        shards.commit(run, key, table.select(written.names), written, FINGERPRINT)
    assert shards.read(run, prefix, whole)["disagreement"].to_pylist() == [None, 0.25]
    assert shards.verify(run) == []
