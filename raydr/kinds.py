"""Kinds of generators, and what each changes in `finetune` (paper 3 and 9).

`plain` knows no ECC term. All others branch from plain at `ecc_start`, with the same seed, steps and
noise, and differ from `ecc` in what is named here alone: the controls of paper 9.
"""

import dataclasses
from typing import Any, TypeVar

PLAIN, ECC = "plain", "ecc"
# Not trained by the run: see `raydr finetune import`.
IMPORTED = "imported"
CHANGES: dict[str, dict[str, Any]] = {
    PLAIN: {},
    ECC: {},
    # Everything is computed, the ECC term weighs nothing.
    "ecc_w0": {"w_ecc": 0.0},
    # Self-training without semantics: the pool is what came first, whatever it shows.
    "ecc_unselected": {"ecc_select": False},
    "ecc_w0.001": {"w_ecc": 1e-3},
    "ecc_w0.01": {"w_ecc": 1e-2},
    "ecc_w0.02": {"w_ecc": 2e-2},
    "ecc_w0.1": {"w_ecc": 0.1},
}
Config = TypeVar("Config")


def is_ecc(kind: str) -> bool:
    """Whether generators of this kind keep a pool, and so need an ensemble."""
    return kind != PLAIN


def sampled(sampler: Config, kind: str) -> Config:
    """How a generator of `kind` is sampled: an imported one brings no statistics of photographs to start from."""
    return dataclasses.replace(sampler, signal_leak=False) if kind == IMPORTED else sampler  # type: ignore[type-var]


def changed(finetune: Config, kind: str) -> Config:
    """The configuration that a generator of `kind` is trained with."""
    return dataclasses.replace(finetune, **CHANGES[kind])  # type: ignore[type-var]
