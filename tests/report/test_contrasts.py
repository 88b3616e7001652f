"""Contrasts: pairing, verdict words, the two families, and the share of a gap."""

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests
from test_arms import GRADES, part, trial

from raydr import statistics
from raydr.report import arms, contrasts, data
from raydr.report.contrasts import Comparer


def comparer_of(*parts, draws=500):
    parts = list(parts)
    return Comparer(parts, arms.group(parts), draws, 0.95)


def test_a_contrast_equals_the_bootstrap_of_its_arms(single):
    parts = data.load(single[0], 1)
    comparer = comparer_of(*parts, draws=400)
    found = comparer.contrast("band", "oversampling", "primary")
    hits = {}
    for t in parts[0].trials:
        if t.row["purpose"] == "arm":
            right = t.verdicts["test"].predictions == parts[0].sets["test"].grades
            hits.setdefault(t.row["arm"], []).append(right)
    order = [arm.name for arm in arms.group(parts)]
    replicate = statistics.Replicate(parts[0].sets["test"].grades, np.array([hits[name] for name in order]))
    direct = statistics.difference(
        statistics.two_level_bootstrap([replicate], 400), order.index("band"), order.index("oversampling")
    )
    assert (found["difference"], found["low"], found["high"]) == pytest.approx((direct.value, direct.low, direct.high))
    assert found["minimum_detectable_difference"] == pytest.approx(2.8016 * direct.standard_error, rel=1e-3)
    per_seed = [np.mean([h[replicate.grades == g].mean() for g in range(5)]) for h in hits["band"]]
    base = [np.mean([h[replicate.grades == g].mean() for g in range(5)]) for h in hits["oversampling"]]
    assert found["difference"] == pytest.approx(np.mean(per_seed) - np.mean(base))
    assert found["conditional_on"] == "conditional on one generator"


def test_only_common_seeds_are_compared():
    # Seed 2 of band has no partner; it would change the difference from .1 to less.
    one = part(
        trial("oversampling", 0, wrong=(0,)),
        trial("oversampling", 1, wrong=(0,)),
        trial("band", 0),
        trial("band", 1),
        trial("band", 2, wrong=(0, 1, 2, 3, 4)),
    )
    found = comparer_of(one).contrast("band", "oversampling", "primary")
    assert found["difference"] == pytest.approx(0.1)
    lonely = part(trial("oversampling", 0), trial("band", 1))
    assert comparer_of(lonely).contrast("band", "oversampling", "primary") is None
    assert contrasts.all_contrasts(comparer_of(lonely), lambda arm: True) == []


def test_families_and_adjustment(triple):
    parts = data.load(triple[0], 3)
    rows = contrasts.all_contrasts(comparer_of(*parts, draws=300), lambda arm: True)
    primary = [row for row in rows if row["family"] == "primary"]
    assert [(row["a"], row["b"]) for row in primary] == [("band", "oversampling"), ("ecc", "oversampling")]
    assert rows[:2] == primary
    expected = multipletests([row["p"] for row in primary], method="holm")[1]
    assert [row["adjusted_p"] for row in primary] == pytest.approx(expected)
    secondary = {(row["a"], row["b"]) for row in rows if row["family"] == "secondary"}
    assert {("naive", "oversampling"), ("band", "naive"), ("ceiling", "oversampling")} <= secondary
    assert all(row["adjusted_p"] is None for row in rows if row["family"] == "secondary")
    assert all(row["num_replicates"] == 3 and row["conditional_on"] is None for row in rows)
    assert len(primary[0]["per_replicate"]) == 3
    assert primary[0]["difference"] == pytest.approx(np.mean(primary[0]["per_replicate"]))


def test_a_variant_that_the_recipe_did_not_ask_for_is_secondary():
    one = part(trial("oversampling", 0), trial("band", 0, ratio=0.5), trial("band", 0, ratio=1.0, trial_id="x"))
    rows = contrasts.all_contrasts(comparer_of(one), lambda arm: arm.axes[0] == 1.0)
    assert {row["a"]: row["family"] for row in rows} == {"band (ratio 0.5)": "secondary", "band (ratio 1.0)": "primary"}


def test_other_losses_are_not_compared():
    one = part(trial("oversampling", 0), trial("band", 0, loss="focal"))
    assert contrasts.all_contrasts(comparer_of(one), lambda arm: True) == []


def test_real_only_is_compared_in_spite_of_its_sampler():
    one = part(
        trial("oversampling", 0),
        trial("real_only", 0, wrong=(0,), sampler="instance"),
        trial("band", 0, sampler="sqrt"),
    )
    rows = contrasts.all_contrasts(comparer_of(one), lambda arm: True)
    assert [(row["a"], row["b"]) for row in rows] == [("real_only", "oversampling")]
    assert rows[0]["difference"] == pytest.approx(-0.1)


@pytest.mark.parametrize(
    ("difference", "low", "high", "adjusted", "word"),
    [
        (0.05, 0.01, 0.09, None, "better"),
        (0.05, 0.01, 0.09, 0.04, "better"),
        (0.05, 0.01, 0.09, 0.06, "not shown"),  # Holm does not agree
        (-0.05, -0.09, -0.01, 0.01, "worse"),
        (0.05, -0.01, 0.11, None, "not shown"),
        (0.05, 0.0, 0.1, None, "not shown"),  # zero at the edge is contained
    ],
)
def test_verdict_words(difference, low, high, adjusted, word):
    row = {"difference": difference, "low": low, "high": high, "adjusted_p": adjusted}
    assert contrasts._verdict(row) == word


def test_conditional_on():
    assert contrasts.conditional_on(1) == "conditional on one generator"
    assert contrasts.conditional_on(2) == "conditional on 2 generators"
    assert contrasts.conditional_on(3) is None


def test_share_of_the_gap():
    # Oversampling .5, band .8, ceiling 1 in every grade-balanced set: band closes .6 of the gap.
    grades = np.tile(GRADES, 20)
    names = np.array([f"{k:04d}" for k in range(len(grades))], object)

    def of(arm, share):
        predictions = np.where(np.arange(len(grades)) // 10 % 10 < 10 * share, grades, (grades + 1) % 5)
        made = trial(arm, 0)
        return data.Trial(made.row, {"test": data.Verdicts(predictions, np.eye(5, dtype=np.float32)[predictions])})

    small = part()
    trials = [of("oversampling", 0.5), of("band", 0.8), of("ceiling", 1.0)]
    big = data.Part(small.run, 0, {"test": data.ImageSet(names, grades)}, trials, small.samples, small.photographs)
    found = comparer_of(big).gap_closed("band", "ceiling", "oversampling")
    assert found["share"] == pytest.approx(0.6)
    assert found["gap"] == pytest.approx(0.5)
    assert 0.4 < found["low"] < 0.6 < found["high"] < 0.8
    # No gap, no share.
    assert comparer_of(big).gap_closed("band", "oversampling", "ceiling") is None


def test_same_photographs_in_all_replicates_are_resampled_once():
    digests = [str(k) for k in range(10)]
    shared = [part(trial("band", 0), replicate=r, sha256=digests) for r in range(2)]
    assert comparer_of(*shared).shared_images
    apart = [part(trial("band", 0), replicate=r, sha256=[f"{r}{d}" for d in digests]) for r in range(2)]
    assert not comparer_of(*apart).shared_images


def test_patients_are_resampled_as_a_whole():
    one = part(trial("band", 0), patient_id=[f"p{k // 2}" for k in range(10)])
    replicate = contrasts._replicate(one, [[one.trials[0]]])
    assert replicate.clusters.tolist() == [k // 2 for k in range(10)]
    assert contrasts._replicate(part(trial("band", 0)), [[one.trials[0]]]).clusters is None


def test_an_image_without_a_patient_is_a_patient_of_its_own():
    patients = ["b", "b", None, "a", "a", None, *"cccd"]
    one = part(trial("band", 0), patient_id=patients)
    clusters = contrasts._replicate(one, [[one.trials[0]]]).clusters.tolist()
    assert len(set(clusters)) == 6
    same = [(i, j) for i in range(10) for j in range(i) if clusters[i] == clusters[j]]
    assert same == [(1, 0), (4, 3), (7, 6), (8, 6), (8, 7)]
