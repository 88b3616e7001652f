"""Configuration of the first stage: where a run's photographs come from."""

from dataclasses import dataclass

from raydr.errors import require

Counts = tuple[int, int, int, int, int]
SPLITS = ("train", "validation", "test", "prior", "external", "fresh")


@dataclass(frozen=True)
class PhantomSet:
    """One synthetic data set of procedural phantoms (raydr.fundus.phantom)."""

    # Data set name in prompts and image ids; also picks the camera (tint, blur, noise).
    dataset: str = "DDR"
    # train, validation, test, prior, external, or fresh (more of the same source, for the ceiling arm).
    split: str = "train"
    # Photographs per grade 0-4.
    counts: Counts = (870, 82, 620, 26, 121)

    def __post_init__(self) -> None:
        require(self.split in SPLITS, f"a phantom set's split is one of {', '.join(SPLITS)}, not {self.split!r}")
        require(min(self.counts) >= 0, f"a phantom set's counts must not be negative: {self.counts}")


@dataclass(frozen=True)
class Ingest:
    """Sources -> `real`."""

    # "phantom" renders `phantoms`; anything else names a reader (ddr, eyepacs, ...) used with PATH.
    source: str = "phantom"
    # Side of the stored square photograph, px. The paper stores 1024.
    px: int = 64
    # Data sets rendered when source = "phantom".
    phantoms: tuple[PhantomSet, ...] = ()
    # Fundus crop: "circle" fits the field of view, "paper" is the published rule.
    crop: str = "circle"
    # Share of unusable source rows above which ingest fails, 0-1.
    max_quarantine: float = 0.02
    # Photographs a shard: one Ray task, one Parquet row group.
    shard_size: int = 64

    def __post_init__(self) -> None:
        require(self.px >= 32, f"ingest.px must be at least 32, not {self.px}")
        require(0 <= self.max_quarantine <= 1, "ingest.max_quarantine is a share between 0 and 1")
        require(self.shard_size >= 1, f"ingest.shard_size must be at least 1, not {self.shard_size}")
        require(self.crop in ("circle", "paper"), f"ingest.crop is 'circle' or 'paper', not {self.crop!r}")
