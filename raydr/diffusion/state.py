"""What a fine-tuning run is given, what it must remember to resume, and how its workers agree."""

import hashlib
import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from raydr.diffusion.latents import Latents
from raydr.errors import DamagedData

# A snapshot's first bytes; the SHA-256 of all that follows them comes next.
MAGIC = b"raydr-state-1\n"


class Ranks(Protocol):
    """How the workers of one run agree; `Alone` for one process, torch.distributed behind Ray Train."""

    rank: int
    world_size: int
    local_rank: int  # among the ranks of this machine

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Sum each tensor over all ranks, in place."""

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value`, in rank order, on every rank."""


class Alone:
    rank, world_size, local_rank = 0, 1, 0

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
    latents: Latents

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
    # Running mean of the weights, in the order of the trainer's parameters; empty without one.
    ema: list[Tensor] = field(default_factory=list)
    # fp16: (loss scale, steps since it last changed).
    scale: tuple[float, int] = (1.0, 0)
    # (step, validation loss) so far.
    validation: list[tuple[int, float]] = field(default_factory=list)
    # The events so far, for the one who keeps them; the trainer passes them by.
    history: list[dict[str, Any]] = field(default_factory=list)

    def to_bytes(self) -> bytes:
        buffer = io.BytesIO()
        torch.save(self.__dict__, buffer)
        data = buffer.getvalue()
        return MAGIC + hashlib.sha256(data).digest() + data

    @classmethod
    def from_bytes(cls, data: bytes) -> "State":
        """Raises DamagedData for bytes that are cut short or changed: nothing of them is read."""
        start = len(MAGIC) + 32
        if not data.startswith(MAGIC) or hashlib.sha256(data[start:]).digest() != data[len(MAGIC) : start]:
            raise DamagedData(
                f"a snapshot of {len(data)} bytes is cut short or changed: delete it, and the last good one is taken"
            )
        try:
            return cls(**torch.load(io.BytesIO(data[start:]), weights_only=True, map_location="cpu"))
        except (RuntimeError, TypeError, pickle.UnpicklingError) as error:
            raise DamagedData(f"a snapshot is of another version of raydr ({error}): delete it") from error


@dataclass(frozen=True)
class Spec:
    """One generator to train; `seed` is shared by a plain run and the ECC run that branches from it."""

    generator_id: str
    kind: str
    grades: tuple[int, ...]
    dataset: str
    seed: int
