"""Fingerprints of what a run holds: fields of the recipe that change pixels or weights, and of its inputs.

Quotas, budgets, arms, report options and cluster shape stay outside, so that a run can grow.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from raydr import kinds
from raydr.config import Recipe
from raydr.grades import GRADES
from raydr.identity import as_dict, fingerprint, seed_of

# Fields of a stage that only say how much of it is wanted; each entry is dropped from the fingerprint.
OUTSIDE = {
    "ingest": ("max_quarantine",),
    "finetune": ("grades", "kinds", "checkpoint_every", "validate_every", "gradient_checkpointing", "revision"),
    "synthesize": (
        "count",
        "accepted",
        "max_images",
        "band",
        "max_starts",
        "max_gpu_seconds",
        "max_cost",
        "hang_seconds",
        "max_quarantine",
        "imported",
    ),
}


def inside(recipe: Recipe, stage: str) -> dict[str, Any]:
    """The stage's configuration without what lies outside its identity."""
    config = as_dict(getattr(recipe, stage))
    return {name: value for name, value in config.items() if name not in OUTSIDE.get(stage, ())}


def later(recipe: Recipe, stage: str) -> dict[str, Any]:
    """{field: default} of the stage's fields that came later and are part of its identity."""
    fields = dataclasses.fields(getattr(recipe, stage))
    outside = OUTSIDE.get(stage, ())
    return {field.name: field.default for field in fields if field.metadata.get("added") and field.name not in outside}


def phantom_seed(recipe: Recipe, position: int) -> int:
    """Cohort seed of the phantom set at `position`; disjoint over recipes' seeds, replicates and sets."""
    assert position < 20, "at most 20 phantom sets"
    assert recipe.replicate < 50, "at most 50 replicates"
    return recipe.seed * 1000 + recipe.replicate * 20 + position


def phantom_fingerprint(recipe: Recipe, position: int) -> str:
    part = recipe.ingest.phantoms[position]
    return fingerprint("phantom", phantom_seed(recipe, position), part, recipe.ingest.px, recipe.ingest.shard_size)


def ensemble_id(recipe: Recipe, data: str) -> str:
    """`data` is the fingerprint of the photographs."""
    parts = ("ensemble", recipe.ensemble, recipe.fold, recipe.seed, recipe.replicate, data)
    return f"e-{fingerprint(*parts)[:10]}"


@dataclass(frozen=True)
class Generator:
    """One generator of a run: its id says kind and grades, its hash what made it."""

    generator_id: str
    kind: str
    grades: tuple[int, ...]
    seed: int
    # The plain generator whose checkpoint an ECC one branches from; its own id for a plain one.
    branch_id: str


def generators(recipe: Recipe, data: str, base: str, ensemble: str) -> list[Generator]:
    """The generators that the recipe asks for, plain ones first (ECC branches from them)."""
    config = recipe.finetune
    groups: Sequence[tuple[int, ...]] = [tuple(GRADES)] if config.joint else [(grade,) for grade in config.grades]
    common = {name: value for name, value in inside(recipe, "finetune").items() if not name.startswith("ecc")}
    common.pop("w_ecc")
    wanted = []
    for kind in kinds.CHANGES:
        inner = dataclasses.replace(recipe, finetune=kinds.changed(config, kind))
        for grades in groups:
            seed = seed_of("generator", recipe.seed, recipe.replicate, grades)
            name = "all" if config.joint else f"g{grades[0]}"
            plain = f"plain-{name}-{fingerprint('plain', common, recipe.fold, seed, data, base)[:8]}"
            identity = (inside(inner, "finetune"), plain, ensemble)
            own = f"{kind}-{name}-{fingerprint(kind, *identity)[:8]}" if kinds.is_ecc(kind) else plain
            if kind in config.kinds:
                wanted.append(Generator(own, kind, grades, seed, plain))
    return wanted


def imported(recipe: Recipe, grade: int, content: str) -> Generator:
    """A generator from elsewhere, of content fingerprint `content`, on the noise of the run's own of that grade."""
    seed = seed_of("generator", recipe.seed, recipe.replicate, (grade,))
    name = f"{kinds.IMPORTED}-g{grade}-{fingerprint(kinds.IMPORTED, content, recipe.finetune.px, seed)[:8]}"
    return Generator(name, kinds.IMPORTED, (grade,), seed, name)


def synthetic_fingerprint(recipe: Recipe, generator_id: str, ensemble: str) -> str:
    return fingerprint("synthetic", generator_id, ensemble, recipe.synthesize.sampler, recipe.synthesize.shard_size)


def shard_key(generator_id: str, grade: int, number: int) -> str:
    return f"synthetic/{generator_id}/g{grade}-{number:06d}.parquet"


def numbers_of(keys: Iterable[str]) -> dict[str, set[int]]:
    """{shard key up to its number: numbers}; keys that are no shard's (a quarantined sample's) are left out."""
    found: dict[str, set[int]] = {}
    for key in keys:
        stem, _, number = key.removesuffix(".parquet").rpartition("-")
        if number.isdecimal():
            found.setdefault(stem, set()).add(int(number))
    return found


def scores_key(ensemble_id: str, key: str) -> str:
    """Where another ensemble's scores of the shard `key` of `synthetic` lie: one shard for one shard."""
    return f"scores/{ensemble_id}/{key.removeprefix('synthetic/')}"


def sample_id(generator_id: str, grade: int, index: int) -> str:
    return f"{generator_id}/g{grade}/{index}"


def sample_seed(recipe: Recipe, generator_seed: int, grade: int, index: int) -> int:
    """Noise seed of a sample: equal for plain and ECC generators, so that they are compared on the same noise."""
    return seed_of("sample", generator_seed, recipe.synthesize.sampler.name, grade, index)
