"""Arms: grouping, recomputed numbers, and the table's means and deviations."""

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, precision_score

from raydr import schema
from raydr.report import arms, data
from raydr.report.data import ImageSet, Part, Trial, Verdicts
from raydr.storage import Run

GRADES = np.repeat(np.arange(5), 2)


def trial(arm, seed, wrong=(), split="test", **values):
    """A trial that grades all of GRADES right but the positions in `wrong`, which it calls one grade higher (mod 5)."""
    predictions = GRADES.copy()
    predictions[list(wrong)] = (predictions[list(wrong)] + 1) % 5
    row = dict.fromkeys(schema.TRIALS.names) | {"arm": arm, "seed": seed, "purpose": "arm", "trial_id": f"{arm}-{seed}"}
    row |= {"backbone": "b", "loss": "ce", "sampler": "balanced", "steps": 9} | values
    return Trial(row, {split: Verdicts(predictions, np.eye(5, dtype=np.float32)[predictions])})


def part(*trials, replicate=0, **columns):
    names = np.array([f"i{k}" for k in range(len(GRADES))], object)
    photographs = schema.REAL.empty_table().select(data.REAL_COLUMNS)
    if columns:
        values = {"image_id": names.tolist(), "split": ["test"] * 10, **columns}
        photographs = pa.table({name: values.get(name, [None] * 10) for name in data.REAL_COLUMNS})
    samples = schema.SYNTHETIC.empty_table()
    return Part(Run("/nowhere"), replicate, {"test": ImageSet(names, GRADES)}, list(trials), samples, photographs)


def test_arms_come_in_the_tables_order_and_maps_stay_out():
    found = arms.group(
        [part(trial("zeta", 0), trial("band", 0), trial("oversampling", 0), trial("band", 9, purpose="map"))]
    )
    assert [arm.name for arm in found] == ["oversampling", "band", "zeta"]
    assert list(found[1].trials[0]) == [0]


def test_variants_are_named_by_what_differs():
    found = arms.group(
        [part(trial("band", 0, ratio=0.5), trial("band", 0, ratio=1.0, trial_id="other"), trial("naive", 0, ratio=1.0))]
    )
    assert [arm.name for arm in found] == ["naive", "band (ratio 0.5)", "band (ratio 1.0)"]
    assert found[0].context == ("b", "ce", "balanced", 9, 0.0, 0.0)


def test_bands_stored_as_float32_are_one_variant():
    low = float(np.float32(0.7))
    found = arms.group([part(trial("band", 0, band_low=low), trial("band", 1, band_low=0.7))])
    assert len(found) == 1
    assert sorted(found[0].trials[0]) == [0, 1]


def test_numbers_are_recomputed_from_the_predictions():
    # One wrong in grade 1, two wrong in grade 3: recalls 1, .5, 1, 0, 1.
    one = part(trial("band", 4, wrong=(2, 6, 7)))
    values = arms.trial_numbers(one, one.trials[0])
    predictions = one.trials[0].verdicts["test"].predictions
    assert values["recall"] == [1, 0.5, 1, 0, 1]
    expected = precision_score(GRADES, predictions, average=None, zero_division=np.nan)
    assert values["precision"] == pytest.approx(expected, nan_ok=True)
    assert values["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(GRADES, predictions))
    assert values["accuracy"] == pytest.approx(0.7)
    assert values["seed"] == 4


def test_summary_row():
    both = part(trial("band", 0), trial("band", 1, wrong=(2, 3)))
    (arm,) = arms.group([both])
    numbers = {t.row["trial_id"]: arms.trial_numbers(both, t) for t in both.trials}
    row = arms.summarise(arm, [both], numbers)
    # Balanced accuracies 1 and .8: mean .9, sample deviation .2 / sqrt(2).
    assert row["metrics"]["balanced_accuracy"] == pytest.approx({"mean": 0.9, "std": 0.2 / np.sqrt(2)})
    assert row["recall"][1]["mean"] == 0.5
    # Mild: precision 1 in the first trial, and in the second no verdict of it at all.
    assert [t.verdicts["test"].predictions.tolist().count(1) for t in both.trials] == [2, 0]
    assert row["precision"][1]["mean"] == 1
    assert np.isnan(row["precision"][1]["std"])
    pooled = sum(confusion_matrix(GRADES, t.verdicts["test"].predictions, labels=range(5)) for t in both.trials)
    assert np.array_equal(row["confusion"], pooled)
    # Mild verdicts at DDR priors: half of mild is called moderate.
    assert row["predicted_at_ddr_priors"][1] == pytest.approx(0.5 * 189 / 3759)
    assert row["predicted_at_ddr_priors"][2] == pytest.approx((1344 + 0.5 * 189) / 3759)
    assert row["reliability"]["count"].sum() == 20
    assert (row["num_trials"], row["num_replicates"], row["num_seeds"]) == (2, 1, 2)


def test_one_trial_has_no_deviation():
    assert np.isnan(arms.mean_std([0.4])["std"])


def test_strata():
    one = part(trial("band", 0, wrong=(0,)), stratum=["a", "b"] * 5)
    rows = arms.strata(arms.group([one]), [one])
    # Source a holds one image a grade and the one wrong verdict.
    assert [(row["stratum"], row["num_images"], row["balanced_accuracy"]["mean"]) for row in rows] == [
        ("a", 5, 0.8),
        ("b", 5, 1),
    ]
    single = part(trial("band", 0), stratum=["a"] * 10)
    assert arms.strata(arms.group([single]), [single]) == []


def test_contradictions_are_reported():
    honest, forged = trial("band", 0, balanced_accuracy=1.0), trial("naive", 0, balanced_accuracy=0.9)
    both = part(honest, forged)
    numbers = {t.row["trial_id"]: arms.trial_numbers(both, t) for t in both.trials}
    (finding,) = arms.discrepancies([both], numbers)
    assert "naive-0" in finding
    assert "0.9000" in finding
    assert "1.0000" in finding


def test_treatments_are_variants_and_earlier_rows_count_as_plain():
    found = arms.group(
        [
            part(
                trial("band", 0, loss="focal", loss_parameter=1.0, mixup=0.0, soft_labels=0.0, trial_id="a"),
                trial("band", 0, loss="focal", loss_parameter=2.0, mixup=0.0, soft_labels=0.0, trial_id="b"),
                trial("naive", 0, loss_parameter=0.0, mixup=0.0, soft_labels=0.0, trial_id="c"),
                trial("naive", 1, trial_id="d"),  # written before there were such columns
            )
        ]
    )
    assert [arm.name for arm in found] == ["naive", "band (loss parameter 1.0)", "band (loss parameter 2.0)"]
    assert sorted(found[0].trials[0]) == [0, 1]


def test_probes_stand_beside_the_table_and_not_in_it():
    kinds = np.repeat([0, 1], [4, 4])
    said = np.array([0, 0, 0, 1, 1, 1, 1, 1])  # recalls .75 and 1
    verdicts = Verdicts(said, np.eye(5, dtype=np.float32)[said])
    row = trial("probe", 0, purpose="probe").row
    one = part(trial("band", 0))
    one.sets["probe"] = ImageSet(np.array([f"p{k}" for k in range(8)], object), kinds)
    one.trials.append(Trial(row, {"probe": verdicts}))
    assert [arm.name for arm in arms.group([one])] == ["band"]
    (found,) = arms.probes([one])
    assert found["balanced_accuracy"]["mean"] == pytest.approx(0.875)
    assert (found["num_held_out"], found["num_trials"], found["told"]) == (8, 1, "generated images")


def test_the_temperature_is_fitted_on_validation_alone():
    rng = np.random.default_rng(3)
    grades = np.repeat(np.arange(5), 200)
    logits = rng.normal(0, 1, (1000, 5)) + 1.5 * np.eye(5)[grades]
    sharp = np.exp(3 * logits)  # three times too confident
    sharp = (sharp / sharp.sum(1, keepdims=True)).astype(np.float32)
    row = trial("band", 0).row
    both = {split: Verdicts(sharp.argmax(1), sharp) for split in ("validation", "test")}
    one = part(Trial(row, both))
    names = np.array([f"v{k:04d}" for k in range(1000)], object)
    one.sets["validation"] = one.sets["test"] = ImageSet(names, grades)
    numbers = arms.trial_numbers(one, one.trials[0])
    # Bayes' rule for unit noise: logits times 1.5 are calibrated, so 3 x is twice too sharp.
    assert numbers["temperature"] == pytest.approx(2.0, rel=0.1)
    assert numbers["expected_calibration_error_tempered"] < 0.05 < numbers["expected_calibration_error"]
    assert np.isnan(arms.trial_numbers(one, Trial(row, {"test": both["test"]}))["temperature"])
