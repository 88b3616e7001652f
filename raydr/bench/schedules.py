"""Does a cheaper schedule of ECC's candidates learn what the full one does?

    python -m raydr.bench.schedules OUT [--seeds 5] [--grade 1] [--cheap ecc_steps=5 ecc_pool=24 ...] [--cheap ...]

OUT is a run with photographs and an ensemble. For each seed one plain run is trained to `ecc_start`, and from there
ECC again and again: as the recipe says, with each cheap schedule, and without the term (w_ecc = 0), which says how
much there is to lose. Compared over seeds, paired: the validation loss at the end, and the share of fresh images
(equal noise, the recipe's own sampler) whose ensemble mean reaches the threshold. Equivalence is claimed by two
one-sided t-tests with a margin of one point: 1 % of the loss, .01 of acceptance. Needs no Ray; the seconds are this
machine's. Each run is kept in OUT/logs/schedules: the same command goes on where it was stopped.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from raydr import statistics, terminal
from raydr.cluster import ensemble, finetune, latents
from raydr.cluster.training import ecc_cost
from raydr.config import Finetune, Recipe
from raydr.errors import UserError
from raydr.identity import fingerprint, seed_of
from raydr.record import stored_recipe
from raydr.storage import Run

# Fewer steps of the multistep solver, and a refresh that ends with a full pool.
CHEAP = {"ecc_steps": 5, "ecc_pool": 24}
MARGIN = 0.01
FULL, KEPT = "full", "logs/schedules"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One ECC run."""

    validation: float
    acceptance: float
    # Seconds of a refresh, and of the steps between two.
    refresh_seconds: float
    train_seconds: float

    @property
    def ratio(self) -> float:
        return self.refresh_seconds / self.train_seconds


def compare(
    recipe: Recipe,
    target: Run,
    schedules: dict[str, dict[str, Any]],
    num_seeds: int,
    num_images: int,
    grade: int,
    on_event: Callable[[str], None],
) -> list[dict[str, Outcome]]:
    """For each seed {name: outcome} of `schedules` = {name: fields of Finetune that it changes}."""
    import torch

    from raydr.diffusion.model import load_base
    from raydr.diffusion.state import Alone

    config = recipe.finetune
    latents.run_here(recipe, target, torch.get_num_threads())
    base, known = load_base(config.base, config.precision, config.revision), latents.base_of(recipe)
    roles = latents.parts(recipe, target, Alone(), known)
    if "validation" not in roles:
        raise UserError(f"{target.url} holds no validation photographs to compare by: ingest some")
    judge = ensemble.load(recipe, target, ensemble.require(recipe, target), "score").probabilities
    setup = Setup(base, roles, judge, finetune.dataset_of(recipe, target), config, grade, num_images)
    found = []
    for number in range(num_seeds):
        seed = seed_of("schedules", recipe.seed, number)
        whole = ("schedules", config, grade, num_images, seed, known)
        keys = {name: f"{KEPT}/{fingerprint(*whole, fields)[:16]}.json" for name, fields in schedules.items()}
        missing = {name: fields for name, fields in schedules.items() if not target.exists(keys[name])}
        for name, one in setup.outcomes(missing, seed) if missing else ():
            target.replace_json(keys[name], dataclasses.asdict(one))
        found.append({name: Outcome(**target.read_json(key)) for name, key in keys.items()})
        for name, one in found[-1].items():
            cost = f"a refresh {one.ratio:.2f}x the training" if one.refresh_seconds else "no refresh"
            on_event(f"seed {number}, {name}: validation {one.validation:.4f}, acceptance {one.acceptance:.3f}, {cost}")
    return found


@dataclasses.dataclass(frozen=True)
class Setup:
    """What all runs of a comparison share."""

    base: Any
    roles: dict[str, Any]
    judge: Callable[[np.ndarray], np.ndarray]
    dataset: str
    config: Finetune
    grade: int
    num_images: int

    def trainer(self, config: Finetune, kind: str, seed: int, on_event: Callable[[dict[str, Any]], None]) -> Any:
        from raydr.diffusion.state import Spec
        from raydr.diffusion.training import Trainer

        spec = Spec(kind, kind, (self.grade,), self.dataset, seed)
        return Trainer(
            self.base, dataclasses.replace(config, validate_every=0), spec, self.roles["train"], self.roles["prior"],
            self.roles["validation"], self.judge, on_event=on_event,
        )  # fmt: skip

    def outcomes(self, schedules: dict[str, dict[str, Any]], seed: int) -> Iterator[tuple[str, Outcome]]:
        """One plain run to the branch, and from there one run a schedule."""
        plain = self.trainer(self.config, "plain", seed, lambda event: None)
        plain.run(self.config.ecc_start)
        branch = plain.state()
        plain.close()
        for name, fields in schedules.items():
            yield name, self.outcome(fields, seed, branch)

    def outcome(self, fields: dict[str, Any], seed: int, branch: Any) -> Outcome:
        config = dataclasses.replace(self.config, **fields)
        heard: list[dict[str, Any]] = []
        # Without the term nothing is to be refreshed.
        run = self.trainer(config, "ecc" if config.w_ecc else "plain", seed, heard.append)
        run.restore(branch)
        run.run()
        cost = ecc_cost(heard, config.ecc_every) if config.w_ecc else {"refresh_seconds": 0.0, "train_seconds": 1.0}
        if cost is None:
            raise UserError("No candidate was accepted at any refresh: lower finetune.ecc_threshold, or train longer")
        full = run.config = self.config  # all are measured with the same sampler
        accepted = 0
        for start in range(0, self.num_images, full.ecc_batch):
            numbers = range(start, min(self.num_images, start + full.ecc_batch))
            seeds = [seed_of("fresh", seed, k) for k in numbers]
            images = run.sample(self.grade, seeds, full.ecc_steps, full.ecc_guidance, full.ecc_batch)
            accepted += int((self.judge(images)[:, :, self.grade].mean(axis=1) >= full.ecc_threshold).sum())
        loss = run.validation_loss()
        assert loss is not None, "there are validation photographs, so some of this grade were expected"
        run.close()
        return Outcome(loss, accepted / self.num_images, cost["refresh_seconds"], cost["train_seconds"])


def verdict(pairs: Sequence[tuple[Outcome, Outcome]]) -> dict[str, Any]:
    """Both tests and what a refresh cost in terms of the training between two; `pairs` are (full, cheap) by seed."""
    loss = statistics.tost([cheap.validation / full.validation - 1 for full, cheap in pairs], MARGIN)
    acceptance = statistics.tost([cheap.acceptance - full.acceptance for full, cheap in pairs], MARGIN)
    return {
        "num_seeds": len(pairs),
        "acceptance_full": float(np.mean([full.acceptance for full, _ in pairs])),
        "validation_loss_relative": dataclasses.asdict(loss),
        "acceptance": dataclasses.asdict(acceptance),
        "ratio_full": float(np.median([full.ratio for full, _ in pairs])),
        "ratio_cheap": float(np.median([cheap.ratio for _, cheap in pairs])),
    }


def _fields(words: Sequence[str]) -> dict[str, Any]:
    """`ecc_steps=5` -> {"ecc_steps": 5}; UserError for what is no field of ECC."""
    known, found = {field.name for field in dataclasses.fields(Finetune)}, {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in known or not name.startswith("ecc_") or not value:
            raise UserError(f"--cheap takes ecc_FIELD=VALUE of finetune, not {word!r}")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 2 after one sentence about a user's mistake."""
    try:
        return _run(argv)
    except UserError as error:
        print(f"raydr: {error}", file=sys.stderr)
        return 2


def _run(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser("raydr.bench.schedules", description=__doc__)
    parser.add_argument("out", metavar="OUT", help="run with photographs and an ensemble")
    parser.add_argument("--seeds", type=int, default=5, help="paired runs (default: 5)")
    parser.add_argument(
        "--images", type=int, default=64, help="fresh images a run that measure acceptance (default: 64)"
    )
    parser.add_argument("--grade", type=int, help="the generator's grade (default: the first of finetune.grades)")
    parser.add_argument(
        "--cheap", nargs="*", action="append", metavar="FIELD=VALUE", help=f"a cheap schedule (default: {CHEAP})"
    )
    options = parser.parse_args(argv)
    target = Run(options.out)
    recipe = stored_recipe(target)
    if recipe is None:
        raise UserError(f"There is no run in {target.url}: name the --out of a run")
    if options.seeds < 2:
        raise UserError("--seeds must be at least 2: one difference has no spread")
    grade = recipe.finetune.grades[0] if options.grade is None else options.grade
    schedules: dict[str, dict[str, Any]] = {FULL: {}}
    for fields in [_fields(words) for words in options.cheap or ()] or [CHEAP]:
        schedules[" ".join(f"{name}={value}" for name, value in fields.items())] = fields
    schedules["w_ecc=0"] = {"w_ecc": 0.0}
    found = compare(recipe, target, schedules, options.seeds, options.images, grade, terminal.note)
    told = {
        name: verdict([(outcomes[FULL], outcomes[name]) for outcomes in found]) for name in schedules if name != FULL
    }
    print(json.dumps(told, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
