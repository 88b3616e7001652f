"""The phantoms that the small base is trained on, and the settings of its building."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raydr.diffusion.parts import PX
from raydr.fundus.phantom import render
from raydr.grades import APTOS_COUNTS, EYEPACS_COUNTS

# Recipes refuse cohort seeds from here on, so no test or training phantom is one the base has seen.
FIRST_BASE_SEED = 900_000


@dataclass(frozen=True)
class BaseConfig:
    # Phantoms per cohort.
    num_phantoms: int = 8000
    vae_steps: int = 1600
    # Then on equal shares of the grades.
    vae_balanced_steps: int = 700
    unet_steps: int = 8000
    batch: int = 16
    vae_learning_rate: float = 2e-3
    learning_rate: float = 1e-3
    # Pixels that a lesion changed weigh this much more in the VAE's loss.
    lesion_weight: float = 8.0
    seed: int = FIRST_BASE_SEED


def proportional(total: int, counts: tuple[int, ...]) -> list[int]:
    """Split `total` as `counts` are split; every grade gets at least one."""
    return [max(1, round(total * count / sum(counts))) for count in counts]


def cohorts(config: BaseConfig) -> list[dict[str, Any]]:
    """The rows that the base is trained on: seed, index, grade, data set, whether labelled."""
    rows = []
    for k, (dataset, counts) in enumerate((("EyePACS", EYEPACS_COUNTS), ("APTOS", APTOS_COUNTS))):
        grades = np.repeat(np.arange(5), proportional(config.num_phantoms, counts))
        rows += [
            {"seed": config.seed + k, "index": i, "grade": int(g), "dataset": dataset, "labelled": k == 1}
            for i, g in enumerate(grades)
        ]
    return rows


def render_all(config: BaseConfig, work: Path, on_event: Callable[[dict], None]) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (N, 64, 64, 3) phantoms and bool (N, 64, 64) masks of the pixels that lesions changed."""
    path = work / f"phantoms-{config.num_phantoms}.npz"
    if path.exists():
        with np.load(path) as stored:
            return stored["images"], stored["masks"]

    def one(row: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        image, _ = render(row["seed"], row["index"], row["grade"], PX, row["dataset"])
        healthy, _ = render(row["seed"], row["index"], row["grade"], PX, row["dataset"], lesions=False)
        return image, np.abs(image.astype(np.int16) - healthy).max(-1) > 8

    with ThreadPoolExecutor(2) as pool:
        pairs = list(pool.map(one, cohorts(config)))
    images, masks = (np.stack(part) for part in zip(*pairs, strict=True))
    on_event({"phase": "phantoms", "step": len(images)})
    temporary = path.with_suffix(".part.npz")
    np.savez(temporary, images=images, masks=masks)
    temporary.replace(path)
    return images, masks
