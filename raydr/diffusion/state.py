"""What a fine-tuning run is given, what it must remember to resume, and how its workers agree."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from raydr.diffusion.latents import LatentCache


class Ranks(Protocol):
    """How the workers of one run agree; `Alone` for one process, torch.distributed behind Ray Train."""

    rank: int
    world_size: int

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Sum each tensor over all ranks, in place."""

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value`, in rank order, on every rank."""


class Alone:
    rank, world_size = 0, 1

    def sum(self, tensors: Sequence[Tensor]) -> None:
        return None

    def gather(self, value: Any) -> list[Any]:
        return [value]


@dataclass(frozen=True)
class Photographs:
    """One role's training images: ids, grades (-1 = none), data sets and latents, row by row."""

    image_ids: tuple[str, ...]
    grades: np.ndarray
    datasets: tuple[str, ...]
    latents: LatentCache

    def of_grades(self, grades: Sequence[int]) -> np.ndarray:
        return np.flatnonzero(np.isin(self.grades, grades))


@dataclass
class State:
    """All that a resumed run needs; `pool` holds the accepted candidates' latents and grades."""

    step: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    pool: Tensor | None = None
    pool_grades: list[int] = field(default_factory=list)
    pool_step: int = -1

    def to_bytes(self) -> bytes:
        buffer = io.BytesIO()
        torch.save(self.__dict__, buffer)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "State":
        return cls(**torch.load(io.BytesIO(data), weights_only=True, map_location="cpu"))


@dataclass(frozen=True)
class Spec:
    """One generator to train; `seed` is shared by a plain run and the ECC run that branches from it."""

    generator_id: str
    kind: str
    grades: tuple[int, ...]
    dataset: str
    seed: int
