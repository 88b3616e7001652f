"""Rebuild one sample from its row and say whether the pixels are the same."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from raydr import schema, shards
from raydr.errors import MissingInput, UserError
from raydr.images import decode, encode
from raydr.kinds import sampled
from raydr.record import stored_recipe
from raydr.storage import Run

# Largest difference of one 8-bit channel that another device or batch shape may make. Batch shapes 1-4 and 1 or 2
# threads of one CPU make 1 (fp32 and bf16, measured); other devices have not been measured.
TOLERANCE = 3


def run(target: Run, sample_id: str, to: str) -> str:
    """Write the image as PNG to `to`; returns "equal", "within tolerance ..." or "different ...".

    Raises UserError for a sample that the run does not hold.
    """
    import json

    import torch

    from raydr.cluster import staging
    from raydr.cluster.session import node_cache
    from raydr.diffusion.compiling import compile_parts
    from raydr.diffusion.leak import SignalLeak
    from raydr.diffusion.lora import Fused
    from raydr.diffusion.model import load_base
    from raydr.diffusion.sampler import PromptCache, sample_latents
    from raydr.diffusion.sampler import decode as to_pixels

    recipe = stored_recipe(target)
    if recipe is None:
        raise MissingInput(f"There is no run in {target.url}: name the --out of a run (for replicates OUT/replicate-N)")
    if not Path(to).absolute().parent.is_dir():
        raise UserError(f"There is no folder {Path(to).absolute().parent} to write the image to: make it first")
    generator_id = sample_id.split("/")[0]
    table = shards.read(
        target, f"synthetic/{generator_id}", schema.SYNTHETIC, filter=pc.field("sample_id") == sample_id, required=False
    )
    if table.num_rows != 1:
        raise UserError(
            f"{target.url} holds no sample {sample_id!r}: take an id from the report or the table, "
            f"and of a run with replicates OUT/replicate-N"
        )
    row = table.to_pylist()[0]
    folder = target.folder(f"generators/{generator_id}", node_cache(target))
    record = json.loads((folder / "generator.json").read_text())
    drawn = row["sampler"]
    # What a row does not hold (precision, interval, compiling) cannot change in a run.
    sampler = dataclasses.replace(
        recipe.synthesize.sampler,
        name=drawn["name"],
        steps=drawn["steps"],
        guidance=drawn["guidance"],
        batch=drawn["batch"],
    )
    # On the device that made it, where this machine has one. As the generator actors do on a CPU: fp32 weights, lower
    # precision by autocast.
    same_gpu = torch.cuda.is_available() and torch.cuda.get_device_name() == row["device"]
    where, precision = ("cuda", sampler.precision) if same_gpu else ("cpu", "fp32")
    source = staging.local(record["base"], recipe.finetune.revision, target)
    base = load_base(source, precision, recipe.finetune.revision, where)
    for part in (base.unet, base.vae):  # as in the generators: another layout picks other kernels
        part.to(memory_format=torch.channels_last)
    if sampler.compiled:
        compile_parts(base, node_cache(target) / "inductor")
    Fused(base.unet, base.text_encoder).switch(folder if record.get("adapter", True) else None)
    sampler = sampled(sampler, record["kind"])
    leak = SignalLeak.load(folder) if sampler.signal_leak else None
    latents = sample_latents(base, PromptCache(base), row["prompt"], [row["seed"]], sampler, record["px"], leak=leak)
    pixels = to_pixels(base, latents, sampler.batch)[0].cpu().numpy()
    Path(to).write_bytes(encode(pixels, "png"))
    difference = np.abs(pixels.astype(np.int16) - decode(row["image"]))
    if not difference.any():
        return "equal"
    worst = int(difference.max())
    kind = "within tolerance" if worst <= TOLERANCE else "different"
    return f"{kind}: largest difference {worst} of 255, mean {difference.mean():.4f} (made on {row['device']})"
