"""raydr.trials: which trials a sweep has, with which graders, under which ids."""

import dataclasses

import pytest

from raydr import recipes, treatments, trials
from raydr.config import Grader
from raydr.errors import UserError
from raydr.graders import Axes, Search
from raydr.identity import fingerprint

DEMO = recipes.named("demo")
OWN = DEMO.sweep.grader


def swept(**fields):
    return dataclasses.replace(DEMO, sweep=dataclasses.replace(DEMO.sweep, **fields))


def test_the_id_of_a_plain_trial_is_what_it_always_was():
    trial = trials.Trial("band", "arm", (0.5, 1.0), 1.0, 2, (0, 3, 0, 4, 0), (0, 5, 0, 6, 0))
    identity = {
        "arm": "band", "purpose": "arm", "band": (0.5, 1.0), "ratio": 1.0, "seed": 2, "extra": (0, 3, 0, 4, 0),
        "asked": (0, 5, 0, 6, 0),
    }  # fmt: skip
    expected = fingerprint("trial", identity, OWN, DEMO.fold, DEMO.seed, DEMO.replicate, "inputs")
    assert trial.trial_id(DEMO, "inputs") == expected
    # Which weights are kept, and what else is searched, changes no id; the grader does.
    others = swept(keep_weights=("band",), axes=Axes(losses=("focal",)), search=Search("band"), num_seeds=9)
    assert trial.trial_id(others, "inputs") == expected
    changed = dataclasses.replace(trial, grader=dataclasses.replace(OWN, mixup=0.2))
    assert changed.trial_id(DEMO, "inputs") != expected
    assert dataclasses.replace(trial, grader=OWN).trial_id(DEMO, "inputs") == expected


def test_the_grid_is_the_product_of_its_axes_with_the_sweeps_own_first():
    recipe = swept(axes=Axes(losses=("focal=1", "ldam@instance"), mixups=(0.0, 0.2)))
    found = trials.graders_of(recipe, "oversampling")
    assert found[0] == OWN
    assert [(g.loss, g.loss_parameter, g.sampler, g.mixup) for g in found[1:]] == [
        ("focal", 1.0, "balanced", 0.0), ("focal", 1.0, "balanced", 0.2),
        ("ldam", 0.0, "instance", 0.0), ("ldam", 0.0, "instance", 0.2),
    ]  # fmt: skip
    assert trials.graders_of(swept(axes=Axes(mixups=(0.0, 0.2), arms=("band",))), "naive") == [OWN]


def test_no_grader_is_trained_twice():
    # real_only draws the data as it is whatever the axis says; soft labels need scored images.
    recipe = swept(axes=Axes(samplers=("balanced", "sqrt"), soft_labels=(0.0, 0.5)))
    assert len(trials.graders_of(recipe, "band")) == 4
    assert len(trials.graders_of(recipe, "oversampling")) == 2
    assert len(trials.graders_of(recipe, "real_only")) == 1
    assert {trials.effective(g, "ceiling").soft_labels for g in trials.graders_of(recipe, "ceiling")} == {0.0}


def test_random_cells_are_kept_when_more_are_drawn():
    axes = Axes(losses=tuple(f"focal={k}" for k in range(1, 8)), mixups=(0.1, 0.2, 0.3))
    few, more = (trials.graders_of(swept(axes=dataclasses.replace(axes, num_random=n)), "band") for n in (4, 9))
    assert (len(few), len(more)) == (5, 10)
    assert more[:5] == few
    assert set(more) <= set(trials.graders_of(swept(axes=axes), "band"))
    other = dataclasses.replace(swept(axes=dataclasses.replace(axes, num_random=4)), seed=2)
    assert trials.graders_of(other, "band") != few


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"axes": Axes(losses=("ldam",))},
            "arm real_only|arm .*: loss 'ldam' corrects for the class counts and sampler",
        ),
        ({"axes": Axes(losses=("focal", "class_balanced=2@instance"))}, "takes a beta between 0 and 1, not 2.0"),
        ({"axes": Axes(losses=("ce=1",))}, "loss 'ce' has no parameter"),
        ({"axes": Axes(losses=("focal=x",))}, "'focal=x' is no treatment"),
        ({"axes": Axes(losses=("focale",))}, "unknown grader.loss 'focale'"),
        ({"axes": Axes(samplers=("even",))}, "unknown sampler 'even'"),
        ({"axes": Axes(mixups=(-0.1,))}, "must not be negative: -0.1"),
        ({"axes": Axes(soft_labels=(1.5,))}, "between 0 and 1, not 1.5"),
        ({"axes": Axes(mixups=(0.1,), arms=("bin_low",))}, "'bin_low' of sweep.axes.arms"),
        ({"keep_weights": ("nobody",)}, "'nobody' of .*sweep.keep_weights is not among sweep.arms"),
        ({"search": Search("ensemble")}, "ensemble trains no grader"),
        ({"search": Search("band", losses=("ldam",))}, "arm band: loss 'ldam' corrects"),
        ({"search": Search(asha=True)}, "name the arm to search"),
        ({"grader": dataclasses.replace(OWN, loss="ldam")}, "loss 'ldam' corrects"),
    ],
)
def test_illegal_cells_are_refused_by_name(fields, words):
    with pytest.raises(UserError, match=words):
        trials.check(swept(**fields))


def test_legal_ones_pass():
    trials.check(swept(axes=Axes(losses=("focal=1", "ldam@instance")), keep_weights=("all",), search=Search("ecc")))
    trials.check(swept(grader=dataclasses.replace(OWN, loss="ldam", sampler="instance")))


@pytest.mark.parametrize(
    ("fields", "values"),
    [
        ({"learning_rate": (0.0, 0.1)}, "learning_rate is a range"), ({"weight_decay": (0.2, 0.1)}, "weight_decay"),
        ({"num_trials": 0}, "num_trials"),
    ],
)  # fmt: skip
def test_a_search_checks_its_ranges(fields, values):
    with pytest.raises(UserError, match=values):
        Search("band", **fields)


def test_trials_are_counted():
    assert trials.count(DEMO) == 6 * 3 + 3
    assert trials.count(swept(arms=("band", "ensemble", "probe"), map_bands=())) == 3 + 1 + 3
    assert trials.count(swept(axes=Axes(mixups=(0.1, 0.2)), map_bands=())) == 6 * 3 * 3
    assert trials.count(swept(map_bands=(), search=Search("band", 7))) == 6 * 3 + 7


def test_draws_of_a_search_lie_in_their_ranges_and_never_change():
    recipe = swept(search=Search("band", 8, losses=("ce", "focal=1"), mixups=(0.1, 0.2), learning_rate=(1e-3, 1e-2)))
    found = [trials.drawn(recipe, number) for number in range(8)]
    assert found == [trials.drawn(recipe, number) for number in range(8)]
    assert len({grader.learning_rate for grader in found}) == 8
    assert all(1e-3 <= grader.learning_rate <= 1e-2 and 0.005 <= grader.weight_decay <= 0.05 for grader in found)
    assert {grader.loss for grader in found} == {"ce", "focal"}
    assert {grader.mixup for grader in found} == {0.1, 0.2}
    assert {grader.evaluate_every for grader in found} == {OWN.steps // 10}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("focal", ("focal", 0.0, "balanced")), ("focal=2", ("focal", 2.0, "balanced")),
        ("ldam@instance", ("ldam", 0.0, "instance")),
        ("class_balanced=0.99@instance", ("class_balanced", 0.99, "instance")),
    ],
)  # fmt: skip
def test_treatments_are_read(text, expected):
    found = treatments.treated(Grader(), text)
    assert (found.loss, found.loss_parameter, found.sampler) == expected


def test_a_count_at_its_default_changes_no_identity_and_is_an_option_of_the_sweep(capsys, tmp_path):
    from raydr import cli
    from raydr.identity import as_dict

    assert "count" not in as_dict(DEMO.sweep)
    assert as_dict(swept(count=5000).sweep)["count"] == 5000
    with pytest.raises(UserError, match=r"sweep\.count must not be negative"):
        swept(count=-1)
    assert cli.main(["sweep", "--recipe", "demo", "--out", str(tmp_path), "--count", "70", "--dry-run"]) == 0
    assert '"count": 70' in capsys.readouterr().out
