"""Does a cheaper schedule of ECC's candidates learn what the full one does?

    python -m raydr.bench.schedules OUT [--seeds 5] [--cheap ecc_steps=5 ecc_pool=24 ...]

OUT is a run with photographs and an ensemble. For each seed one plain run is trained to `ecc_start`, and from there
ECC twice: as the recipe says, and with the cheap fields. Compared over seeds, paired: the validation loss at the end,
and the share of fresh images (equal noise, the recipe's own sampler) whose ensemble mean reaches the threshold.
Equivalence is claimed by two one-sided t-tests with a margin of one point: 1 % of the loss, .01 of acceptance. Needs
no Ray; the seconds are this machine's.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from raydr import statistics, terminal
from raydr.cluster import ensemble, finetune, latents
from raydr.cluster.training import ecc_cost
from raydr.config import Finetune, Recipe
from raydr.errors import UserError
from raydr.identity import seed_of
from raydr.record import stored_recipe
from raydr.storage import Run

# Fewer steps of the multistep solver, and a refresh that ends with a full pool.
CHEAP = {"ecc_steps": 5, "ecc_pool": 24}
MARGIN = 0.01


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
    recipe: Recipe, target: Run, cheap: dict[str, Any], num_seeds: int, num_images: int, on_event: Callable[[str], None]
) -> list[tuple[Outcome, Outcome]]:
    """(full, cheap) for each seed."""
    import torch

    from raydr.diffusion.model import load_base
    from raydr.diffusion.state import Alone

    full = recipe.finetune
    latents.run_here(recipe, target, torch.get_num_threads())
    base, known = load_base(full.base, full.precision, full.revision), latents.base_of(recipe)
    roles = latents.parts(recipe, target, Alone(), known)
    if "validation" not in roles:
        raise UserError(f"{target.url} holds no validation photographs to compare by: ingest some")
    judge = ensemble.load(recipe, target, ensemble.require(recipe, target), "score").probabilities
    dataset, found = finetune.dataset_of(recipe, target), []
    for number in range(num_seeds):
        seed = seed_of("schedules", recipe.seed, number)
        both = _pair(base, roles, judge, dataset, full, dataclasses.replace(full, **cheap), seed, num_images)
        found.append(both)
        on_event(
            f"seed {number}: validation {both[0].validation:.4f} / {both[1].validation:.4f}, acceptance "
            f"{both[0].acceptance:.3f} / {both[1].acceptance:.3f}, ECC at {both[0].ratio:.2f}x / {both[1].ratio:.2f}x "
            "the training"
        )
    return found


def _pair(
    base: Any,
    roles: dict[str, Any],
    judge: Callable[[np.ndarray], np.ndarray],
    dataset: str,
    full: Finetune,
    cheap: Finetune,
    seed: int,
    num_images: int,
) -> tuple[Outcome, Outcome]:
    from raydr.diffusion.state import Spec
    from raydr.diffusion.training import Trainer

    grade = full.grades[0]

    def trainer(config: Finetune, kind: str, heard: list[dict[str, Any]]) -> Any:
        spec = Spec(kind, kind, (grade,), dataset, seed)
        return Trainer(
            base, dataclasses.replace(config, validate_every=0), spec, roles["train"], roles["prior"],
            roles["validation"], judge, on_event=heard.append,
        )  # fmt: skip

    plain = trainer(full, "plain", [])
    plain.run(full.ecc_start)
    branch = plain.state()
    plain.close()
    outcomes = []
    for config in (full, cheap):
        heard: list[dict[str, Any]] = []
        run = trainer(config, "ecc", heard)
        run.restore(branch)
        run.run()
        cost = ecc_cost(heard, config.ecc_every)
        if cost is None:
            raise UserError("No candidate was accepted at any refresh: lower finetune.ecc_threshold, or train longer")
        run.config = full  # both are measured with the same sampler
        accepted = 0
        for start in range(0, num_images, full.ecc_batch):
            seeds = [seed_of("fresh", seed, k) for k in range(start, min(num_images, start + full.ecc_batch))]
            images = run.sample(grade, seeds, full.ecc_steps, full.ecc_guidance, full.ecc_batch)
            accepted += int((judge(images)[:, :, grade].mean(axis=1) >= full.ecc_threshold).sum())
        loss = run.validation_loss()
        assert loss is not None, "there are validation photographs, so some of this grade were expected"
        outcomes.append(Outcome(loss, accepted / num_images, cost["refresh_seconds"], cost["train_seconds"]))
        run.close()
    return outcomes[0], outcomes[1]


def verdict(pairs: Sequence[tuple[Outcome, Outcome]]) -> dict[str, Any]:
    """Both tests and what a refresh cost in terms of the training between two, per schedule."""
    loss = statistics.tost([cheap.validation / full.validation - 1 for full, cheap in pairs], MARGIN)
    acceptance = statistics.tost([cheap.acceptance - full.acceptance for full, cheap in pairs], MARGIN)
    return {
        "num_seeds": len(pairs),
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
    parser = argparse.ArgumentParser("raydr.bench.schedules", description=__doc__)
    parser.add_argument("out", metavar="OUT", help="run with photographs and an ensemble")
    parser.add_argument("--seeds", type=int, default=5, help="paired runs (default: 5)")
    parser.add_argument(
        "--images", type=int, default=64, help="fresh images a run that measure acceptance (default: 64)"
    )
    parser.add_argument("--cheap", nargs="*", metavar="FIELD=VALUE", help=f"the cheap schedule (default: {CHEAP})")
    options = parser.parse_args(argv)
    target = Run(options.out)
    recipe = stored_recipe(target)
    if recipe is None:
        raise UserError(f"There is no run in {target.url}: name the --out of a run")
    if options.seeds < 2:
        raise UserError("--seeds must be at least 2: one difference has no spread")
    cheap = _fields(options.cheap) if options.cheap else CHEAP
    found = verdict(compare(recipe, target, cheap, options.seeds, options.images, terminal.note))
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
