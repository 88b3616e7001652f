"""Trials of every arm on a node, without Ray: what is trained on, what is committed, which weights are kept."""

import json

import numpy as np
import pytest
from cluster.small_run import make_run, recomputed, results, small_recipe

from raydr import arms, metrics, schema, shards
from raydr.cluster import sweep, trial_node, trial_run
from raydr.grading.evaluate import load_grader
from raydr.kinds import CHANGES
from raydr.trials import plan

ARMS = tuple(arms.ARMS)
RECIPE = small_recipe(arms=ARMS, band=(0.4, 1.0), keep_weights=("band",))


def with_kinds(recipe):
    import dataclasses

    finetune = dataclasses.replace(recipe.finetune, kinds=tuple(CHANGES))
    return dataclasses.replace(recipe, finetune=finetune)


RECIPE = with_kinds(RECIPE)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(run, {arm: row}) of every arm trained once."""
    run = make_run(tmp_path_factory.mktemp("trials") / "out", RECIPE)
    for trial in plan(RECIPE, trial_node.read_tables(RECIPE, run)).trials:
        trial_id = trial.trial_id(RECIPE, sweep.inputs_of(RECIPE, run, trial.arm))
        trial_run.run(RECIPE, run, trial, trial_id, lambda event: None, 1, False)
    return run, {row["arm"]: row for row in results(run)}


def test_every_arm_has_a_row_recomputed_from_its_predictions(done):
    run, rows = done
    assert sorted(rows) == sorted(ARMS)
    for name, row in rows.items():
        if name.startswith("probe"):
            assert row["balanced_accuracy"] is None
            assert recomputed(run, row, name) == pytest.approx(row["validation_balanced_accuracy"], abs=1e-6)
        else:
            assert recomputed(run, row) == pytest.approx(row["balanced_accuracy"], abs=1e-6)
    assert rows["band"]["steps"] == 6
    assert (rows["band"]["mixup"], rows["band"]["loss_parameter"]) == (0, 0)


def test_what_the_arms_added(done):
    _, rows = done
    # 12 samples a grade, the band [.4, 1] holds 7 of them; 24 - 8 = 16 and 24 - 6 = 18 are asked for.
    assert rows["band"]["num_synthetic"] == rows["naive"]["num_synthetic"] == [0, 7, 0, 7, 0]
    assert rows["band"]["shortage"] == [0, 9, 0, 11, 0]
    controls = ["vae_roundtrip", *(kind for kind in CHANGES if kind not in ("plain", "ecc"))]
    assert len(controls) == 7
    for name in ("random_subset", "ecc", "ecc_band", *controls):
        assert rows[name]["num_synthetic"] == [0, 7, 0, 7, 0], name
    # Nobody made moderate and proliferative samples here; 24 - 16 and 24 - 8 are asked for.
    assert rows["all_grades"]["num_synthetic"] == [0, 7, 0, 7, 0]
    assert rows["all_grades"]["shortage"] == [0, 9, 8, 11, 16]
    # Three mild and two severe photographs of the prior set, which hold no other arm back.
    assert (rows["external_real"]["num_real"], rows["external_real"]["shortage"]) == (62 + 5, [0, 13, 0, 16, 0])
    # [0, .5) holds 6 of either grade, (.9, 1] one.
    for name in ("bin_low", "bin_mid", "bin_paper", "bin_top"):
        assert rows[name]["num_synthetic"] == [0, 1, 0, 1, 0]
    assert rows["ceiling"]["num_real"] == 62 + 14
    assert rows["oversampling"]["num_synthetic"] == rows["ensemble"]["num_synthetic"] == [0] * 5
    assert rows["ensemble"]["backbone"] == "ensemble of 3: test_resnet"


def test_the_ensemble_row_is_the_members_mean(done):
    from raydr.cluster import ensemble

    run, rows = done
    judges = ensemble.load(RECIPE, run, ensemble.identity(RECIPE, run))
    table = shards.read(run, "trials/predictions", schema.PREDICTIONS).to_pylist()
    mine = {r["image_id"]: r for r in table if r["trial_id"] == rows["ensemble"]["trial_id"] and r["split"] == "test"}
    real = shards.read(run, "real", schema.REAL).to_pylist()
    from raydr.images import decode

    for row in [row for row in real if row["split"] == "test"][::7]:
        expected = judges.probabilities(decode(row["image"])[None]).mean(axis=1)[0]
        np.testing.assert_allclose(mine[row["image_id"]]["probabilities"], expected, atol=1e-5)
    # What the ensemble stage says of validation is what this row's predictions there give.
    told = ensemble.verdict(RECIPE, run, ensemble.identity(RECIPE, run), False)
    held = [r for r in table if r["trial_id"] == rows["ensemble"]["trial_id"] and r["split"] == "validation"]
    columns = [np.array([row[name] for row in held]) for name in ("grade", "prediction", "probabilities")]
    expected = metrics.summary(*columns)
    for name in ("balanced_accuracy", "macro_auc", "brier"):
        assert told[name] == pytest.approx(expected[name], abs=1e-6)


def test_a_probe_is_held_out_on_images_of_both_kinds(done):
    run, rows = done
    table = shards.read(run, "trials/predictions", schema.PREDICTIONS).to_pylist()
    mine = [row for row in table if row["trial_id"] == rows["probe"]["trial_id"]]
    assert {row["split"] for row in mine} == {"probe"}
    assert sorted({row["grade"] for row in mine}) == [0, 1]
    made = [row["image_id"] for row in mine if row["grade"] == 1]
    assert made
    assert all(name.startswith("plain-") for name in made)
    assert len(made) == len(mine) / 2


def test_kept_weights_give_the_stored_verdicts(done):
    run, rows = done
    kept = [key for key, _ in run.list("trials/graders") if key.endswith("_done.json")]
    assert kept == [f"trials/graders/{rows['band']['trial_id']}/_done.json"]
    grader = load_grader(run.path(kept[0]).parent)
    table = shards.read(run, "trials/predictions", schema.PREDICTIONS).to_pylist()
    mine = {r["image_id"]: r for r in table if r["trial_id"] == rows["band"]["trial_id"] and r["split"] == "test"}
    row = next(row for row in shards.read(run, "real", schema.REAL).to_pylist() if row["split"] == "test")
    from raydr.images import decode

    np.testing.assert_allclose(grader(decode(row["image"])), mine[row["image_id"]]["probabilities"], atol=1e-5)
    assert grader.meta.role == "trial"
    assert grader.meta.temperature > 0


def test_weights_wanted_later_are_trained_again_to_the_same_verdicts(done):
    run, rows = done
    recipe = small_recipe(arms=ARMS, band=(0.4, 1.0), keep_weights=("naive",))
    recipe = with_kinds(recipe)
    before = results(run)
    (trial,) = [t for t in plan(recipe, trial_node.read_tables(recipe, run)).trials if t.arm == "naive"]
    trial_id = trial.trial_id(recipe, sweep.inputs_of(recipe, run, "naive"))
    assert trial_id == rows["naive"]["trial_id"], "which weights are kept is no part of a trial's identity"
    assert sweep.wants_weights(recipe, run, trial, trial_id)
    trial_run.run(recipe, run, trial, trial_id, lambda event: None, 1, False)
    assert results(run) == before
    record = json.loads(run.read(f"trials/graders/{trial_id}/trial.json"))
    assert record["difference"] == 0
    assert not sweep.wants_weights(recipe, run, trial, trial_id)


def test_a_round_trip_changes_pixels_a_little(done):
    from raydr.cluster import ensemble, roundtrip

    run, _ = done
    real = shards.read(run, "real", schema.REAL)
    digests = real["sha256"].to_pylist()[24:28]
    decoded = roundtrip.array(RECIPE, run, digests)
    original = ensemble.image_array(run, 32, [("real", schema.REAL)], digests)
    one = decoded[decoded.positions(digests)].astype(float)
    other = original[original.positions(digests)].astype(float)
    difference = np.abs(one - other).mean()
    assert 0 < difference < 25
    folder = next((run.local / "cache" / "arrays").glob("roundtrip-*"))
    written = (folder / "32px.u8").stat()
    roundtrip.array(RECIPE, run, digests)
    assert (folder / "32px.u8").stat().st_mtime_ns == written.st_mtime_ns, "encoded and decoded once"
