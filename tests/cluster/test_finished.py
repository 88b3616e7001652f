"""What makes a finished stage unfinished again, and who leaves when a lock is lost."""

import threading
import time
from types import SimpleNamespace

import pyarrow as pa
import pytest

from raydr import recipes, schema, shards
from raydr.cluster import ingest, pipeline, source_record
from raydr.storage import Run

RECIPE = recipes.named("debug")
KEYS = ["real/phantom-train-0000.parquet", "real/aptos-0000.parquet", "real/other-0000.parquet"]


@pytest.fixture
def run(tmp_path):
    return Run(str(tmp_path / "out"))


def add(run, count):
    """The first `count` shards of photographs, as an ingest leaves them."""
    empty = {field.name: pa.nulls(1, field.type) for field in schema.REAL}
    for key in KEYS[:count]:
        shards.commit(run, key, pa.table(empty | {"image_id": [key]}, schema.REAL), schema.REAL, "f")
    shards.complete(run, "real", KEYS[:count])


def record(run, stage, **more):
    run.replace_json(f"logs/stage-{stage}.json", {"identity": pipeline.identity(RECIPE, stage), **more})


def test_a_source_that_is_added_is_learnt_from(run, monkeypatch):
    add(run, 1)
    for stage in pipeline.STAGES[1:]:
        record(run, stage, photographs=ingest.fingerprint_of(run))
    record(run, "ingest", photographs=None)
    assert all(pipeline.finished(RECIPE, run, stage) for stage in pipeline.STAGES)
    add(run, 2)
    assert [stage for stage in pipeline.STAGES if pipeline.finished(RECIPE, run, stage)] == ["ingest"]
    record(run, "ensemble", photographs=ingest.fingerprint_of(run))
    assert pipeline.finished(RECIPE, run, "ensemble")
    # Graders are evaluated on an external one, and nothing learns from it.
    source = SimpleNamespace(role="external", keys=[KEYS[2]])
    monkeypatch.setattr(source_record, "sources", lambda target: [source])
    add(run, 3)
    assert pipeline.finished(RECIPE, run, "ensemble")


def test_records_of_older_versions_are_believed(run):
    add(run, 1)
    record(run, "ensemble")
    assert pipeline.finished(RECIPE, run, "ensemble")


def test_who_loses_a_lock_leaves(run):
    lost = threading.Event()
    threading.Timer(0.5, lost.set).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), pipeline._leaving(run, [threading.Event(), lost]):
        time.sleep(30)
    assert time.monotonic() - started < 10
    with pipeline._leaving(run, [threading.Event()]):
        pass
