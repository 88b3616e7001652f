"""Shards of an ingest's two passes, without Ray: what a lost worker or a power cut leaves is gone on from."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fundus.trees import photograph, write

from raydr import schema, shards
from raydr.cluster import audit, ingest, ingest_passes, session
from raydr.errors import IdentityMismatch, UserError
from raydr.storage import Run


@pytest.mark.parametrize(("count", "cpus"), [(1, 2), (2, 2), (16, 2), (64, 2), (625, 2), (625, 64), (3, 8)])
def test_portions_hold_every_shard_and_end_small(count, cpus) -> None:
    sizes = ingest.portions(count, cpus)
    assert sum(sizes) == count
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) <= ingest.MOST_SHARDS
    # The last one to finish holds the others up by one shard, and the first ones are long enough to hide their start.
    assert sizes[-1] == 1
    assert len(sizes) <= max(4 * cpus, count / ingest.MOST_SHARDS) + 8 * cpus


@pytest.mark.parametrize(
    ("count", "cpus", "tasks"), [(1, 2, 1), (16, 2, 4), (625, 2, 4), (5000, 2, 20), (100, 64, 100)]
)
def test_quick_shards_share_a_few_tasks(count, cpus, tasks) -> None:
    sizes = ingest.equal_portions(count, cpus)
    assert (sum(sizes), len(sizes)) == (count, tasks)
    assert max(sizes) - min(sizes) <= 1


def test_a_task_tells_its_progress_shard_by_shard_and_a_users_mistake_as_a_sentence(monkeypatch) -> None:
    told = []
    monkeypatch.setattr(session, "report_to", lambda meter, **values: told.append((meter, values)))

    def work(plan, unit):
        if plan == 2:
            raise UserError("mend it")
        return {"done": unit * plan}

    answers = ingest.shard_task({"number": [7], "portion": ["[1, 2, 3]"]}, work, (10,), "bar")["answer"]
    assert [json.loads(answer) for answer in answers] == [{"done": 10}, {"refused": "mend it"}, {"done": 30}]
    assert told == [("bar", {"done:7": 10}), ("bar", {"done:7": 40})]


def staged_plan(tmp_path) -> tuple[str, dict, dict]:
    """(url, plan of the first pass, plan of the second) of one shard of one photograph."""
    url, key = str(tmp_path / "out"), "staging/D/000000.parquet"
    write(tmp_path / "files", {"a.jpg": photograph(1)})
    plan = {"key": key, "fingerprint": "f", "rows": [["a.jpg", "D/a", "D", None, None, 0, True, None, 9]]}
    ingest_passes.stage_shard(plan, url, str(tmp_path / "files"), 64, "circle")
    record = ingest_passes.staged_commits(Run(url), "D")[key]
    digest = pq.read_table(tmp_path / "out" / key)["file_sha256"][0].as_py()
    later = {"key": "real/D-000000.parquet", "staged": key, "sha256": record.sha256, "listed": 1}
    return url, plan, later | {"rows": {"D/a": [digest, "train", 3]}}


def test_a_task_that_is_run_again_leaves_what_it_has_done(tmp_path, monkeypatch) -> None:
    """Several shards share a task: when its worker is lost on the second one, the first is there already."""
    url, plan, later = staged_plan(tmp_path)
    monkeypatch.setattr(ingest_passes, "prepare_rows", lambda *_, **__: pytest.fail("read twice"))
    assert ingest_passes.stage_shard(plan, url, "/nowhere", 64, "circle") == {"done": 1, "unusable": 0}
    first = ingest_passes.publish_shard(later, url, "identity")
    # The staged shard is gone by now.
    assert ingest_passes.publish_shard(later, url, "identity") == first == {"done": 1, "rows": 1}
    with pytest.raises(IdentityMismatch):
        ingest_passes.publish_shard(later, url, "other")
    (row,) = shards.read(Run(url), "real", schema.REAL).to_pylist()
    assert (row["image_id"], row["split"], row["fold"]) == ("D/a", "train", 3)


@pytest.mark.parametrize("left", ["shard cut", "shard gone", "record cut"])
def test_what_a_power_cut_leaves_of_a_staged_shard_is_made_again(tmp_path, left) -> None:
    url, plan, _ = staged_plan(tmp_path)
    run = Run(url)
    ingest_passes.mend(run, "D")
    assert set(ingest_passes.staged_commits(run, "D")) == {plan["key"]}
    path = run.path(shards.record_key(plan["key"]) if left == "record cut" else plan["key"])
    if left == "shard gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:20])
    ingest_passes.mend(run, "D")
    assert ingest_passes.staged_commits(run, "D") == {}
    ingest_passes.stage_shard(plan, url, str(tmp_path / "files"), 64, "circle")
    assert set(ingest_passes.staged_commits(run, "D")) == {plan["key"]}


def test_photographs_of_an_earlier_version_are_read_and_audited(tmp_path, capsys) -> None:
    """Shards without the column `source_border`, which came later, stand beside one with it."""
    url, _, later = staged_plan(tmp_path)
    ingest_passes.publish_shard(later, url, "identity")
    run = Run(url)
    new = shards.read(run, "real", schema.REAL)
    old = pa.schema(list(schema.REAL)[:16])
    table = new.select(old.names).set_column(0, "image_id", pa.array(["D/old"]))
    shards.commit(run, "real/D-000001.parquet", table, old, "identity")
    both = shards.read(run, "real", schema.REAL)
    assert [border is None for border in both["source_border"].to_pylist()] == [False, True]
    assert shards.verify(run) == []
    assert audit.run(run).num_images == 2
