"""Photographs after the base's VAE, encoded and decoded once a node: the artefact control (paper 9)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from raydr import images, schema
from raydr.cluster import ensemble, session, staging
from raydr.config import Recipe
from raydr.storage import Run

# Photographs of one encode and decode: a VAE at 512 px needs about 0.5 GB each.
BATCH = 8


def array(recipe: Recipe, target: Run, sha256s: Sequence[str], device: str = "cpu") -> Any:
    """The node's ImageArray of these photographs after encode and decode, keyed by the originals' hashes.

    Encoded to the posterior's mean at `finetune.px` in the generators' precision, and brought to `ingest.px` as
    every sample is. Cached as pixels; processes of a node wait for the one that makes them.
    """
    from raydr.diffusion.model import base_fingerprint, from_uint8, load_base
    from raydr.grading.arrays import ImageArray

    config = recipe.finetune
    name = base_fingerprint(config.base, config.revision)[:8]
    precision = recipe.synthesize.sampler.precision if device == "cuda" else "fp32"  # as generators do
    folder = session.node_cache(target) / "arrays" / f"roundtrip-{name}-{config.px}-{precision}"
    missing = ImageArray(folder, recipe.ingest.px).missing(sha256s)
    if not missing:
        return ImageArray(folder, recipe.ingest.px)
    originals = ensemble.image_array(target, config.px, [("real", schema.REAL)], missing)
    base = load_base(staging.local(config.base, config.revision, target), precision, config.revision, device)

    def decoded(digests: Sequence[str]) -> list[np.ndarray]:
        import torch

        found = []
        for start in range(0, len(digests), BATCH):
            pixels = originals[originals.positions(digests[start : start + BATCH])]
            latents = base.encode(from_uint8(torch.from_numpy(pixels)).to(base.device))
            found += list(base.decode(latents).cpu().numpy())
        if config.px != recipe.ingest.px:
            found = [images.decode(images.encode(image), recipe.ingest.px) for image in found]
        return found

    return ImageArray.extend(folder, recipe.ingest.px, missing, decoded)
