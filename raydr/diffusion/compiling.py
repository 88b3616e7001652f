"""torch.compile of the parts that sampling spends its time in, with a cache that all actors of a node share."""

import os
from pathlib import Path

from raydr.diffusion.model import Base


def compile_parts(base: Base, cache: Path) -> None:
    """Compile UNet and decoder in place, for the static shapes that the sampler feeds them.

    The first actor of a node pays for it, the others and every restart read `cache` (inductor locks it). Weights
    stay inputs, so a LoRA may still be fused in place. Compiled kernels round differently: part of the identity.
    """
    # Read by torch when it first compiles; an administrator's own choice stands.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
    base.unet.compile(dynamic=False)
    base.vae.decoder.compile(dynamic=False)
