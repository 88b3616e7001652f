"""torch.compile of the parts that sampling and training spend their time in; a node's workers share a cache."""

import os
from pathlib import Path

from raydr.diffusion.model import Base


def share_cache(cache: Path) -> None:
    """Name the folder of compiled kernels, before torch first compiles; an administrator's own choice stands.

    The first worker of a node pays for it, the others and every restart read it (inductor locks it).
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))


def compile_parts(base: Base, cache: Path) -> None:
    """Compile UNet and decoder in place, for the static shapes that the sampler feeds them.

    Weights stay inputs, so a LoRA may still be fused in place. Compiled kernels round differently: part of the
    identity.
    """
    share_cache(cache)
    compile_unet(base)
    base.vae.decoder.compile(dynamic=False)


def compile_unet(base: Base) -> None:
    """Compile the UNet in place, adapters included; `plain_unet` undoes it."""
    base.unet.compile(dynamic=False)


def plain_unet(base: Base) -> None:
    # What nn.Module.compile sets; torch has no call that takes it back.
    base.unet._compiled_call_impl = None
