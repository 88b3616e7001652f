"""Small settings and random latents for the tests of fine-tuning."""

import numpy as np
import torch

from raydr.config import Finetune
from raydr.diffusion.latents import LatentCache
from raydr.diffusion.state import Photographs, Spec
from raydr.diffusion.training import Trainer
from raydr.identity import rng_of

PX = 32
CONFIG = Finetune(
    px=PX,
    steps=5,
    batch_pairs=2,
    rank=2,
    alpha=4,
    ecc_start=2,
    ecc_every=2,
    ecc_calls=2,
    ecc_batch=4,
    ecc_keep=3,
    ecc_threshold=0.7,
    ecc_steps=2,
    w_ecc=0.5,
    validate_every=0,
)


def photographs(grades, dataset="DDR", seed=0):
    """Random latents of one photograph a grade listed."""
    shape = (len(grades), 2, 6, PX // 2, PX // 2)
    rng = rng_of("photographs", seed)
    mean, std = (torch.from_numpy(rng.normal(size=shape).astype(np.float32)) for _ in range(2))
    ids = tuple(f"{dataset}/{k}" for k in range(len(grades)))
    return Photographs(ids, np.array(grades), (dataset,) * len(grades), LatentCache(mean, 0.1 * std.abs()))


INSTANCE = photographs([1, 1, 1, 3, 3, 2])
PRIOR = photographs([0, 1, 2, 3, 4, -1], "EyePACS", seed=1)
# By position in a batch of 4; of the 3 best, two reach .7.
MEANS = np.array([0.8, 0.1, 0.9, 0.6])


def judge(images):
    """(B, 2, 5): two members whose mean of every grade is MEANS."""
    assert images.dtype == np.uint8
    assert images.shape == (4, PX, PX, 3)
    return np.stack([MEANS - 0.05, MEANS + 0.05], axis=1)[:, :, None].repeat(5, axis=2)


def trainer(base, config=CONFIG, kind="plain", grades=(1,), seed=7, **options):
    """(Trainer, list of its events)"""
    events = []

    def keep(event):  # what a clock says differs between two equal runs
        events.append({key: value for key, value in event.items() if not key.endswith("_seconds")})

    spec = Spec(f"{kind}-test", kind, grades, "DDR", seed)
    options = {"judge": judge, "on_event": keep, "validation": INSTANCE} | options
    return Trainer(base, config, spec, options.pop("instance", INSTANCE), PRIOR, **options), events
