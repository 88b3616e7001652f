"""The trials of a sweep: arms x graders x seeds, cells of the map, draws of a search. Pure, without Ray or torch.

A trial's id is the hash of its configuration and of what it is made from, so a sweep that grows or
resumes runs only what is not there yet, and hardware is no part of it.
"""

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from raydr import selection, treatments
from raydr.arms import ADDING_NOTHING, arm_named
from raydr.config import Recipe
from raydr.errors import UserError
from raydr.graders import Grader
from raydr.grades import NUM_GRADES
from raydr.identity import fingerprint, rng_of
from raydr.kinds import CHANGES

Counts = tuple[int, ...]
NOTHING: Counts = (0,) * NUM_GRADES


@dataclass(frozen=True)
class Trial:
    """One grader to train; everything here is its identity."""

    arm: str
    # "arm" (reported on test), "map" and "search" (validation alone), "probe" (real against synthetic).
    purpose: str
    band: tuple[float, float]
    ratio: float
    seed: int
    extra: Counts  # images added per grade; of a probe, of each kind to train on
    asked: Counts  # what the ratio asks for; of a probe, of each kind held out
    # None = the sweep's own.
    grader: Grader | None = None

    def trial_id(self, recipe: Recipe, inputs: str) -> str:
        identity = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "grader"}
        grader = self.grader or recipe.sweep.grader
        return fingerprint("trial", identity, grader, recipe.fold, recipe.seed, recipe.replicate, inputs)

    def column(self, name: str) -> Any:
        """A field as the search space has it: scalars only."""
        return self.band[name == "band_high"] if name.startswith("band_") else getattr(self, name)

    def trained_with(self, recipe: Recipe) -> Grader:
        """The grader that is really trained: real_only has a sampler of its own."""
        return effective(self.grader or recipe.sweep.grader, self.arm)


@dataclass(frozen=True)
class Plan:
    """The trials of a sweep, and a sentence for each arm that cannot be run."""

    trials: tuple[Trial, ...]
    left_out: dict[str, str]


def effective(grader: Grader, name: str) -> Grader:
    """`grader` as arm `name` trains it: with the arm's sampler, and soft labels only where samples have scores."""
    arm = arm_named(name)
    sampler = arm.sampler or grader.sampler
    return replace(grader, sampler=sampler, soft_labels=grader.soft_labels if arm.source in CHANGES else 0.0)


def grid(recipe: Recipe) -> list[Grader]:
    """The cells of `sweep.axes`, or those of them that were drawn."""
    own, axes = recipe.sweep.grader, recipe.sweep.axes
    lines = (axes.backbones, axes.losses, axes.samplers, axes.mixups, axes.soft_labels)
    if not any(lines):
        return []
    cells = []
    values: Any  # of four types
    for values in itertools.product(*(line or (None,) for line in lines)):
        backbone, loss, sampler, mixup, soft = values
        cell = replace(own, backbone=backbone or own.backbone, sampler=sampler or own.sampler)
        cell = treatments.treated(cell, loss) if loss else cell
        mixup, soft = own.mixup if mixup is None else mixup, own.soft_labels if soft is None else soft
        cells.append(replace(cell, mixup=mixup, soft_labels=soft))
    if axes.num_random:
        order = rng_of("axes", recipe.seed).permutation(len(cells))[: axes.num_random]
        cells = [cells[k] for k in order]
    return cells


def graders_of(recipe: Recipe, name: str) -> list[Grader]:
    """What arm `name` is trained with: the sweep's own grader first, then the grid; none twice."""
    axes = recipe.sweep.axes
    others = grid(recipe) if not axes.arms or name in axes.arms else []
    found: dict[Grader, Grader] = {}
    for grader in (recipe.sweep.grader, *others):
        found.setdefault(effective(grader, name), grader)
    return list(found.values())


def drawn(recipe: Recipe, number: int) -> Grader:
    """Draw `number` of a random search."""
    search, rng = recipe.sweep.search, rng_of("search", recipe.seed, number)
    ranges = (search.learning_rate, search.weight_decay)
    rate, decay = (math.exp(rng.uniform(math.log(low), math.log(high))) for low, high in ranges)
    loss = search.losses[rng.integers(len(search.losses))] if search.losses else None
    mixup = search.mixups[rng.integers(len(search.mixups))] if search.mixups else None
    return suggested(recipe, {"learning_rate": rate, "weight_decay": decay, "loss": loss, "mixup": mixup})


def suggested(recipe: Recipe, values: dict[str, Any]) -> Grader:
    """The sweep's grader with a searcher's values; None keeps its own. Watched on validation ten times."""
    own = recipe.sweep.grader
    own = treatments.treated(own, values["loss"]) if values.get("loss") else own
    numbers = {name: float(values[name]) for name in ("learning_rate", "weight_decay", "mixup") if values.get(name)}
    return replace(own, **numbers, evaluate_every=max(1, own.steps // 10))  # type: ignore[arg-type]


def check(recipe: Recipe) -> None:
    """UserError naming the first cell that no trial may have: before anything starts."""
    sweep = recipe.sweep
    for name in {*sweep.axes.arms, *sweep.keep_weights} - {*sweep.arms, "all"}:
        raise UserError(f"{name!r} of sweep.axes.arms or sweep.keep_weights is not among sweep.arms: add it there")
    wanted = [(name, grader) for name in sweep.arms for grader in graders_of(recipe, name)]
    if sweep.search.arm:
        arm = arm_named(sweep.search.arm)
        if arm.source == "scorers" or arm.family == "probe":
            raise UserError(f"sweep.search.arm: {sweep.search.arm} trains no grader: name another arm")
        losses = sweep.search.losses or (None,)
        wanted += [(sweep.search.arm, suggested(recipe, {"loss": loss})) for loss in losses]
    elif sweep.search.asha:
        raise UserError("sweep.search.asha stops trials of a search early: name the arm to search in sweep.search.arm")
    for name, grader in wanted:
        try:
            treatments.check_combination(effective(grader, name))
        except UserError as error:
            raise UserError(f"sweep, arm {name}: {error}") from None


def count(recipe: Recipe) -> int:
    """Trials of one replicate, before anything is known of shortages."""
    sweep = recipe.sweep
    arms = sum(
        1 if arm_named(name).source == "scorers"
        else sweep.num_seeds * (1 if arm_named(name).family == "probe" else len(graders_of(recipe, name)))
        for name in sweep.arms
    )  # fmt: skip
    cells = len(sweep.map_bands) * len(sweep.map_ratios) * sweep.map_seeds
    return arms + cells + (sweep.search.num_trials if sweep.search.arm else 0)


def plan(recipe: Recipe, tables: selection.Tables) -> Plan:
    """Every trial of the sweep but those that a searcher of Ray's suggests: arms, the map's cells, a random search."""
    sweep = recipe.sweep
    counts = selection.counts_of_arms(sweep.arms, sweep.ratio, sweep.grades, sweep.band, tables, sweep.count)
    main = [name for name in sweep.arms if arm_named(name).family == "main" and arm_named(name).source in CHANGES]
    if main and counts[main[0]][1].sum() > 0 and counts[main[0]][0].sum() == 0:
        raise UserError(
            f"No image of grades {sweep.grades} is accepted by every arm ({', '.join(main)}) in the band "
            f"{sweep.band}: widen sweep.band, or synthesize more"
        )
    trials, left_out = [], {}
    for name in sweep.arms:
        arm, seeds = arm_named(name), range(sweep.num_seeds)
        if arm.source == "scorers":
            trials.append(Trial(name, "arm", sweep.band, sweep.ratio, 0, NOTHING, NOTHING))
            continue
        if arm.family == "probe":
            train, held = selection.probe_counts(name, sweep.grades, sweep.band, tables)
            if min(train.sum(), held.sum()) == 0:
                left_out[name] = f"{name} is left out: too few images of grades {sweep.grades} to train and hold out"
                continue
            trials += [_trial(name, "probe", sweep.band, sweep.ratio, seed, train, held) for seed in seeds]
            continue
        given, asked = counts[name]
        if arm.source not in ADDING_NOTHING and asked.sum() > 0 and given.sum() == 0:
            left_out[name] = f"{name} is left out: there is no usable image of grades {sweep.grades} for it"
            continue
        graders = graders_of(recipe, name)
        trials += [
            _trial(name, "arm", sweep.band, sweep.ratio, seed, given, asked, grader if number else None)
            for number, grader in enumerate(graders)
            for seed in seeds
        ]
    for band in sweep.map_bands:
        for ratio in sweep.map_ratios:
            given, asked = selection.counts_of_arms(("band",), ratio, sweep.grades, band, tables)["band"]
            trials += [_trial("band", "map", band, ratio, seed, given, asked) for seed in range(sweep.map_seeds)]
    if sweep.search.arm and sweep.search.searcher == "random":
        base = search_base(recipe, tables)
        trials += [replace(base, grader=drawn(recipe, number)) for number in range(sweep.search.num_trials)]
    return Plan(tuple(trials), left_out)


def search_base(recipe: Recipe, tables: selection.Tables) -> Trial:
    """A trial of the searched arm, of which a search varies the grader alone."""
    sweep, name = recipe.sweep, recipe.sweep.search.arm
    arms = tuple(dict.fromkeys((*sweep.arms, name)))
    given, asked = selection.counts_of_arms(arms, sweep.ratio, sweep.grades, sweep.band, tables, sweep.count)[name]
    return _trial(name, "search", sweep.band, sweep.ratio, 0, given, asked)


def _trial(
    name: str,
    purpose: str,
    band: tuple[float, float],
    ratio: float,
    seed: int,
    extra: np.ndarray,
    asked: np.ndarray,
    grader: Grader | None = None,
) -> Trial:
    return Trial(name, purpose, band, ratio, seed, tuple(extra.tolist()), tuple(asked.tolist()), grader)
