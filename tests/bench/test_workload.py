"""How far a run had come when: read off what it leaves behind, against runs made by hand."""

import os
import time

import pyarrow as pa
import pytest

from raydr import schema, shards
from raydr.bench import bare, workload
from raydr.bench.meter import Recording
from raydr.cluster import ensemble, ingest
from raydr.errors import MissingInput
from raydr.storage import Run


def trial(number):
    return workload.fill({"trial_id": f"t{number}", "seed": number}, 3, schema.TRIALS)


def test_fill_makes_lists_constants_and_nulls():
    table = workload.fill({"trial_id": ["a", "b"], "arm": "naive"}, 2, schema.TRIALS)
    assert table.schema == schema.TRIALS
    assert table["trial_id"].to_pylist() == ["a", "b"]
    assert table["arm"].to_pylist() == ["naive", "naive"]
    assert table["accuracy"].null_count == 2


def test_progress_is_when_each_record_was_written(tmp_path):
    run = Run(str(tmp_path))
    for number, seconds in ((0, 12.0), (1, 10.0), (2, 15.0)):
        key = f"trials/results/t{number}.parquet"
        shards.commit(run, key, trial(number), schema.TRIALS, "f")
        os.utime(run.path(shards.record_key(key)), (1000 + seconds, 1000 + seconds))
    assert workload.committed(run, "trials/results", 1000.0) == [(3, 10.0), (6, 12.0), (9, 15.0)]
    assert workload.committed(run, "synthetic", 1000.0) == []
    record = Recording(started=1000.0)
    assert workload.commits(run, "trials/results")(record) == [(3, 10.0), (6, 12.0), (9, 15.0)]
    shards.commit(run, "trials/results/t3.parquet", trial(3), schema.TRIALS, "f")
    os.utime(run.path(shards.record_key("trials/results/t3.parquet")), (1015, 1015))
    assert workload.commits(run, "trials/results", 2)(record) == [(6, 12.0), (12, 15.0)]


def test_steps_are_read_from_tensorboard_files_without_the_last(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(tmp_path / "a" / "run"))
    for step, moment in ((1, 100.0), (2, 100.5), (3, 101.5), (4, 109.0)):
        writer.add_scalar("loss", 1.0, step, walltime=moment)
        writer.add_scalar("grad_norm", 1.0, step, walltime=moment + 0.2)  # the step was over before
    writer.close()
    events = workload.logged(tmp_path, 8)
    assert events == [(100.0, 8), (100.5, 8), (101.5, 8)]
    assert workload.cumulative(events, 99.0) == [(8, 1.0), (16, 1.5), (24, 2.5)]


def test_two_processes_count_together():
    assert workload.cumulative([(3.0, 2), (1.0, 2), (2.0, 5)], 0.0) == [(2, 1.0), (7, 2.0), (9, 3.0)]


@pytest.mark.parametrize("sizes", [workload.FULL, workload.QUICK])
def test_the_work_is_whole_shards_of_whole_batches(sizes):
    recipe = workload.recipe(sizes)
    assert recipe.synthesize.count == sizes.synthesis_shards * recipe.synthesize.shard_size
    assert recipe.sweep.num_seeds == sizes.trials
    plans = list(ingest.plan_phantoms(workload.phantoms(3)))
    assert [len(plan["indices"]) for plan in plans] == [64] * 3
    assert workload.two_workers(recipe).finetune.batch_pairs == 2 * recipe.finetune.batch_pairs
    shorter = workload.training(recipe, 10).finetune
    assert (shorter.steps, shorter.kinds) == (10, ("plain",))


def test_photographs_are_different_eyes_and_kept(tmp_path):
    folder = workload.write_photographs(tmp_path, 3)
    files = sorted(folder.rglob("*.jpg"))
    assert [file.parent.name for file in files] == ["0", "1", "2"]
    assert len({file.read_bytes() for file in files}) == 3
    before = [file.stat().st_mtime_ns for file in files]
    time.sleep(0.02)
    workload.write_photographs(tmp_path, 3)
    assert [file.stat().st_mtime_ns for file in files] == before


def test_bare_phantoms_are_the_pipelines_phantoms(tmp_path):
    bare.phantoms(str(tmp_path / "bare"), 1, processes=1, px=32)
    recipe, run = workload.phantoms(1, 32), Run(str(tmp_path / "one"))
    for plan in ingest.plan_phantoms(recipe):
        ingest.render_shard(plan, run.url, recipe)
    ours, theirs = (shards.read(Run(str(tmp_path / name)), "real", schema.REAL) for name in ("one", "bare"))
    assert ours.num_rows == 64
    assert ours.equals(theirs)


def test_bare_photographs_are_all_there(tmp_path):
    folder = workload.write_photographs(tmp_path / "files", 3)
    bare.photographs(str(tmp_path / "out"), str(folder), processes=1)
    table = shards.read(Run(str(tmp_path / "out")), "real", schema.REAL)
    assert sorted(table["grade"].to_pylist()) == [0, 1, 2]
    assert set(table["split"].to_pylist()) == {"train"}
    assert isinstance(table, pa.Table)


def test_graders_read_photographs_where_nothing_was_generated(tmp_path):
    recipe, run = workload.phantoms(1, 32), Run(str(tmp_path))
    for plan in ingest.plan_phantoms(recipe):
        ingest.render_shard(plan, run.url, recipe)
    digests = shards.read(run, "real", schema.REAL, ["sha256"])["sha256"].to_pylist()
    array = ensemble.image_array(run, 32, [("real", schema.REAL), ("synthetic", schema.SYNTHETIC)], digests)
    assert len(array.positions(digests)) == 64
    # What no table holds is refused when it is asked for.
    other = ensemble.image_array(run, 32, [("real", schema.REAL), ("synthetic", schema.SYNTHETIC)], ["00" * 32])
    with pytest.raises(MissingInput, match="1 of 1 images are not in the array"):
        other.positions(["00" * 32])
