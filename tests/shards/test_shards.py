"""Shards as files that others read, commits and what is read of them, and notes about what went wrong."""

import io
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from raydr import images, parquet, schema, shards
from raydr.errors import DamagedData, IdentityMismatch, MissingInput, UserError
from raydr.schema import SCORES, SYNTHETIC
from raydr.storage import Run

from .tables import FINGERPRINT, PLAN, ROWS, flip, make


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
