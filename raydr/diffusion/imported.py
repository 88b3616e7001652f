"""Generators from elsewhere: a LoRA in diffusers' layout, a whole UNet, or a pipeline's folder as it is."""

import shutil
from pathlib import Path

from raydr.diffusion.lora import FULL, WEIGHTS, Fused
from raydr.diffusion.model import base_fingerprint, load_base
from raydr.errors import MissingInput, UserError
from raydr.identity import sha256

INDEX = "model_index.json"


def take(source: str, base: str, revision: str | None, folder: Path) -> tuple[bool, str]:
    """Copy into `folder` what `source` adds to the base; (whether it adds anything, fingerprint of its content).

    `source` is a LoRA's .safetensors file or a folder with one, a folder with a UNet alone (unet/), or a whole
    pipeline, which must then be the base itself: its words and latents are the run's. Only safetensors are read.
    Raises UserError for weights that do not fit the base.
    """
    path = Path(source)
    if (path / INDEX).is_file():
        known = base_fingerprint(source)
        if known != base_fingerprint(base, revision):
            raise UserError(
                f"{source} is a whole pipeline, and finetune.base of this run is {base}: start a run with "
                f"--finetune.base {source}, or name a LoRA of {base}"
            )
        return False, known
    lora = path if path.is_file() else path / WEIGHTS
    for file, name in ((path / FULL, FULL), (lora, WEIGHTS)):
        if file.is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / name)
            parts = load_base(base, "fp32", revision)
            Fused(parts.unet, parts.text_encoder).switch(folder)
            return True, sha256(file.read_bytes())
    raise MissingInput(f"{source} holds neither {WEIGHTS} nor {FULL} nor a pipeline ({INDEX}): name a folder that does")
