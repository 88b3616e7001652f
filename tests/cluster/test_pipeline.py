"""The whole pipeline on the debug recipe, through the command line: finish, resume, refuse, rebuild."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raydr import cli, recipes, schema, shards
from raydr.images import decode
from raydr.storage import Run

pytestmark = pytest.mark.timeout(600)


def content(out, table, columns):
    rows = shards.read(Run(str(out)), table, columns)
    return rows.to_pylist()


def test_every_stage_left_what_the_recipe_asks_for(finished_run):
    recipe, run = recipes.named("debug"), Run(str(finished_run))
    real = shards.read(run, "real", schema.REAL)
    assert real.num_rows == sum(sum(part.counts) for part in recipe.ingest.phantoms)
    assert len(set(real["image_id"].to_pylist())) == real.num_rows
    synthetic = shards.read(run, "synthetic", schema.SYNTHETIC)
    assert synthetic.num_rows == 4 * 8  # 2 grades x 2 kinds x 8 images
    assert len(set(synthetic["sample_id"].to_pylist())) == 32
    assert set(synthetic["kind"].to_pylist()) == {"plain", "ecc"}
    probabilities = np.array(synthetic["probabilities"].to_pylist())
    assert probabilities.shape == (32, 3, 5)
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
    grades = np.array(synthetic["grade"].to_pylist())
    expected = probabilities[np.arange(32), :, grades].mean(1)
    np.testing.assert_allclose(synthetic["score"].to_numpy(), expected, atol=1e-6)
    trials = shards.read(run, "trials/results", schema.TRIALS).to_pylist()
    arms = [row for row in trials if row["purpose"] == "arm"]
    assert sorted({row["arm"] for row in arms}) == sorted(recipe.sweep.arms)
    assert len(arms) == len(recipe.sweep.arms) * recipe.sweep.num_seeds
    assert {row["steps"] for row in trials} == {recipe.sweep.grader.steps}


def test_plain_and_ecc_are_sampled_from_the_same_noise_but_differ(finished_run):
    rows = shards.read(Run(str(finished_run)), "synthetic", schema.SYNTHETIC).to_pylist()
    by = {(row["kind"], row["grade"], row["index"]): row for row in rows}
    for grade in (1, 3):
        for index in range(8):
            plain, ecc = by["plain", grade, index], by["ecc", grade, index]
            assert plain["seed"] == ecc["seed"]
            assert plain["generator_id"] != ecc["generator_id"]
    assert len({row["seed"] for row in rows}) == 16


def test_results_json_is_recomputed_from_the_stored_predictions(finished_run):
    results = json.loads((finished_run / "report" / "results.json").read_text())
    predictions = shards.read(Run(str(finished_run)), "trials/predictions", schema.PREDICTIONS).to_pylist()
    for trials in results["arms"].values():
        for trial_id, numbers in trials.items():
            rows = [row for row in predictions if row["trial_id"] == trial_id and row["split"] == "test"]
            recalls = [
                np.mean([row["prediction"] == grade for row in rows if row["grade"] == grade]) for grade in range(5)
            ]
            assert numbers["balanced_accuracy"] == pytest.approx(np.mean(recalls), abs=1e-9)
    assert set(results["stages"]) >= {"ingest", "ensemble", "finetune", "synthesize", "sweep"}
    assert all(stage["seconds"] > 0 and stage["peak_bytes"] > 0 for stage in results["stages"].values())


def test_the_same_command_again_skips_every_stage_without_ray(finished_run, capsys):
    started = time.perf_counter()
    assert cli.main(["run", "--out", str(finished_run)]) == 0
    assert time.perf_counter() - started < 30
    assert capsys.readouterr().out.count("finished before") == 5


def test_each_generator_is_a_lora_in_diffusers_layout(finished_run):
    folders = [path for path in (finished_run / "generators").iterdir() if path.is_dir()]
    assert len(folders) == 4
    for folder in folders:
        assert (folder / "pytorch_lora_weights.safetensors").is_file()
        record = json.loads((folder / "generator.json").read_text())
        assert record["steps"] == 4
        assert np.isfinite(record["loss"]["loss"])


def test_a_sample_is_rebuilt_with_equal_pixels(finished_run, tmp_path, capsys):
    row = shards.read(Run(str(finished_run)), "synthetic", schema.SYNTHETIC).to_pylist()[5]
    file = tmp_path / "again.png"
    assert cli.main(["regenerate", str(finished_run), row["sample_id"], "--to", str(file)]) == 0
    assert "equal" in capsys.readouterr().out
    np.testing.assert_array_equal(np.asarray(Image.open(file)), decode(row["image"]))


def test_another_guidance_is_refused_with_both_values(finished_run, capsys):
    before = {path: path.read_bytes() for path in finished_run.rglob("*.parquet")}
    code = cli.main(["synthesize", "--out", str(finished_run), "--sampler.guidance", "3.5"])
    said = " ".join(capsys.readouterr().out.split())
    assert code == 2
    assert "synthesize.sampler" in said
    assert "3.5" in said
    assert "2.0" in said
    assert {path: path.read_bytes() for path in finished_run.rglob("*.parquet")} == before


def test_a_damaged_shard_is_found_dropped_and_made_again_with_the_same_pixels(finished_run, tmp_path, capsys):
    out = tmp_path / "copy"
    shutil.copytree(finished_run, out)
    victim = sorted((out / "synthetic").rglob("*.parquet"))[0]
    before = pq.read_table(victim, columns=["sample_id", "sha256", "score"]).to_pylist()
    victim.write_bytes(victim.read_bytes()[:-200])
    assert cli.main(["verify", str(out)]) == 1
    assert cli.main(["repair", str(out)]) == 0
    assert not victim.exists()
    assert cli.main(["synthesize", "--out", str(out)]) == 0
    assert pq.read_table(victim, columns=["sample_id", "sha256", "score"]).to_pylist() == before
    assert cli.main(["verify", str(out)]) == 0


# What a stage leaves when its first piece of work is done, and so is in the middle.
FIRST = {
    "ingest": "_commits/real/*.json",
    "ensemble": "graders/*/*/_done.json",
    "finetune": "generators/*/_done.json",
    "synthesize": "_commits/synthetic/*/*.json",
    "sweep": "_commits/trials/results/*.json",
}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_killed_in_every_stage_goes_on_to_the_same_tables(finished_run, tmp_path):
    """SIGKILL of the driver and all that it started, as soon as the stage has done its first piece of work."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "raydr", "run", "--recipe", "debug", "--out", str(out)]
    command += ["--shape.num-cpus", "2"]  # as the fixture: weights follow from the number of threads
    for stage, pattern in FIRST.items():
        process = subprocess.Popen(command, start_new_session=True)
        limit = time.monotonic() + 200
        while not any(out.glob(pattern)):
            assert process.poll() is None, f"it ended before {stage}"
            assert time.monotonic() < limit, f"{stage} did nothing"
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, f"{stage} was over"
        assert not (out / f"logs/stage-{stage}.json").exists(), f"{stage} was over"
    assert cli.main(command[3:]) == 0
    for table, columns, names in (
        ("real", schema.REAL, ["image_id", "sha256"]),
        ("synthetic", schema.SYNTHETIC, ["sample_id", "sha256", "score"]),
        ("trials/predictions", schema.PREDICTIONS, ["trial_id", "image_id", "prediction"]),
    ):
        ours = shards.read(Run(str(out)), table, columns, names).to_pylist()
        theirs = shards.read(Run(str(finished_run)), table, columns, names).to_pylist()
        assert ours == theirs, table
    assert shards.verify(Run(str(out))) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_scorers_of_their_own_make_the_same_table(finished_run, tmp_path):
    """Pixels, scores and gate of a pool behind the generators are those of the generators' own actors."""
    out = tmp_path / "out"
    shutil.copytree(finished_run, out, ignore=shutil.ignore_patterns("synthetic", "trials", "_attempts", "_ray"))
    (out / "logs" / "stage-synthesize.json").unlink()
    shape = ["--shape.num-cpus", "2", "--shape.scorers", "1", "--shape.scorer-cpus", "0.5"]
    assert cli.main(["synthesize", "--out", str(out), *shape]) == 0
    columns = [name for name in schema.SYNTHETIC.names if name != "image"]
    tables = [shards.read(Run(str(run)), "synthetic", schema.SYNTHETIC, columns) for run in (out, finished_run)]
    ours, theirs = [table.sort_by("sample_id").to_pylist() for table in tables]
    assert ours == theirs
    assert len(ours) > 0
