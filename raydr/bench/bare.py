"""The bare loops: each stage's work without Ray, as one would write it for one machine. The limit to compare with.

    python -m raydr.bench.bare LOOP '{"url": ..., ...}'

Each runs as a process of its own, so that imports and models are counted as its start-up, as they are for workers.
The mathematics is that of the stages (the same kernels); what is left out is Ray, the quota and the streaming.
"""

import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raydr import lineage, schema, selection, shards
from raydr.bench import workload
from raydr.cluster import ensemble, finetune, ingest
from raydr.cluster import latents as latent_cache
from raydr.config import Recipe
from raydr.storage import Run

# -- ingest ----------------------------------------------------------------------------------------


def phantoms(url: str, num_shards: int, processes: int, px: int = 64) -> None:
    recipe = workload.phantoms(num_shards, px)
    with multiprocessing.Pool(processes) as pool:
        list(pool.imap_unordered(partial(ingest.render_shard, url=url, recipe=recipe), ingest.plan_phantoms(recipe)))


def photographs(url: str, folder: str, processes: int) -> None:
    """Decode, crop, resize, hash and commit: one pass, since a loop of one's own settles no duplicates."""
    from raydr.cluster.settling import open_listing

    config = workload.sources().ingest
    base, rows, _ = open_listing("folder", folder, None, None)
    parts = [rows[start : start + config.shard_size] for start in range(0, len(rows), config.shard_size)]
    with multiprocessing.Pool(processes) as pool:
        work = partial(_photograph_shard, url=url, base=base, px=config.px, crop=config.crop)
        list(pool.imap_unordered(work, enumerate(parts)))


def _photograph_shard(part: tuple[int, list[Any]], url: str, base: str, px: int, crop: str) -> None:
    from raydr.cluster.source_files import prepare_rows

    number, rows = part
    prepared, _ = prepare_rows(rows, base, px, crop)
    table = pa.Table.from_pylist(prepared, schema.REAL)  # which leaves the hash of the file out
    shards.commit(Run(url), f"real/bare-{number:06d}.parquet", table, schema.REAL, "bare")


def loader(url: str, folder: str, processes: int) -> None:
    """The peer for data: a torch DataLoader with workers over the same files, which writes nothing."""
    from torch.utils.data import DataLoader

    from raydr.cluster.settling import open_listing

    config = workload.sources().ingest
    base, rows, _ = open_listing("folder", folder, None, None)
    files: Any = Files(rows, base, config.px, config.crop)
    batches = DataLoader(files, batch_size=config.shard_size, num_workers=processes)
    events = [(time.time(), float(len(batch))) for batch in batches]
    workload.save_progress(Run(url), events)


class Files:
    """A map-style data set of prepared photographs, uint8 (px, px, 3)."""

    def __init__(self, rows: list[Any], base: str, px: int, crop: str) -> None:
        self._rows, self._base, self._px, self._crop = rows, Path(base), px, crop

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> np.ndarray:
        from raydr.fundus.preprocess import prepare

        return prepare((self._base / self._rows[index].path).read_bytes(), self._px, self._crop).pixels


# -- synthesize ------------------------------------------------------------------------------------


def synthesize(url: str, recipe: Recipe, threads: int, device: str, share: int = 0, of: int = 1) -> None:
    """Generate, score, gate, encode, write, one batch after the other: every `of`-th shard, from `share` on."""
    import torch

    from raydr.cluster import session
    from raydr.cluster.generator import gate
    from raydr.diffusion.compiling import compile_parts
    from raydr.diffusion.leak import SignalLeak
    from raydr.diffusion.lora import Fused
    from raydr.diffusion.model import load_base
    from raydr.diffusion.sampler import PromptCache, decode, sample_latents
    from raydr.fundus import plausible
    from raydr.grading.ensemble import score
    from raydr.identity import sha256
    from raydr.images import encode

    torch.set_num_threads(threads)
    target, config = Run(url), recipe.synthesize
    precision = config.sampler.precision if device == "cuda" else "fp32"
    base = load_base(recipe.finetune.base, precision, recipe.finetune.revision, device)
    for part in (base.unet, base.vae):
        part.to(memory_format=torch.channels_last)
    if config.sampler.compiled:
        compile_parts(base, session.node_cache(target) / "inductor")
    prompts, fused = PromptCache(base), Fused(base.unet)
    ensemble_id = ensemble.identity(recipe, target)
    judges = ensemble.load(recipe, target, ensemble_id, "score", device)
    known = gate(recipe, target)
    (generator,) = finetune.planned(recipe, target)
    folder = target.path(f"generators/{generator.generator_id}")
    record = json.loads((folder / "generator.json").read_text())
    fused.switch(folder)
    grade = generator.grades[0]
    prompt, size = record["prompts"][str(grade)], config.sampler.batch
    leak = SignalLeak.load(folder) if config.sampler.signal_leak else None
    for number in range(share, config.count // config.shard_size, of):
        indices = range(number * config.shard_size, (number + 1) * config.shard_size)
        seeds = [lineage.sample_seed(recipe, record["seed"], grade, index) for index in indices]
        images = []
        for start in range(0, len(seeds), size):
            part_seeds = seeds[start : start + size]
            latents = sample_latents(base, prompts, prompt, part_seeds, config.sampler, record["px"], leak=leak)
            images.append(decode(base, latents, size).cpu().numpy())
        pixels = np.concatenate(images)
        probabilities = judges.probabilities(pixels)
        nearest, distances, _ = known.check(pixels)
        encoded = [encode(image) for image in pixels]
        rows = {
            "sample_id": [lineage.sample_id(generator.generator_id, grade, index) for index in indices],
            "generator_id": generator.generator_id,
            "kind": generator.kind,
            "grade": grade,
            "index": list(indices),
            "seed": seeds,
            "prompt": prompt,
            "image": encoded,
            "sha256": [sha256(image) for image in encoded],
            "blank": plausible.is_blank(pixels),
            "valid_fundus": plausible.is_fundus(pixels),
            "nearest_image_id": nearest,
            "nearest_distance": distances,
            "ensemble_id": ensemble_id,
            "probabilities": probabilities.tolist(),
            "score": score(probabilities, grade),
            "synthetic": True,
        }
        table = workload.fill(rows, len(encoded), schema.SYNTHETIC)
        key = lineage.shard_key(generator.generator_id, grade, number)
        shards.commit(target, key, table, schema.SYNTHETIC, "bare")


def score(url: str, recipe: Recipe, threads: int, share: int, of: int, device: str) -> None:
    """Every `of`-th shard of images, from `share` on: read, decode, judge, write."""
    import torch

    from raydr.cluster import session
    from raydr.grading import rescoring

    torch.set_num_threads(threads)
    target = Run(url)
    cache, ensemble_id = session.node_cache(target), ensemble.identity(recipe, target)
    judges = rescoring.find(target, ensemble_id, "score", cache)
    members = rescoring.load(target, judges, cache, device)
    for item in rescoring.plan(target, judges)[share::of]:
        rescoring.score_shard(target, members, ensemble_id, item)


# -- finetune and sweep ----------------------------------------------------------------------------


def train_generator(url: str, recipe: Recipe, threads: int, device: str) -> None:
    """The Trainer's loop alone, on latents that are cached as the stage caches them."""
    import torch
    from torch.utils.tensorboard import SummaryWriter

    from raydr.diffusion.model import load_base
    from raydr.diffusion.state import Alone, Spec
    from raydr.diffusion.training import Trainer

    torch.set_num_threads(threads)
    target, config = Run(url), recipe.finetune
    base = load_base(config.base, config.precision, config.revision, device)
    latent_cache.run_here(recipe, target, threads)
    known = latent_cache.base_of(recipe)
    parts = latent_cache.parts(recipe, target, Alone(), known)
    words = latent_cache.embeddings(recipe, target, known)
    (generator,) = finetune.planned(recipe, target)
    dataset = finetune.dataset_of(recipe, target)
    spec = Spec(generator.generator_id, generator.kind, generator.grades, dataset, generator.seed)
    writer = SummaryWriter(str(target.path("logs/tensorboard/bare")))
    train, prior, held = (parts[name] for name in ("train", "prior", "validation"))
    Trainer(base, config, spec, train, prior, held, writer=writer, embeddings=words).run()
    writer.close()


def train_graders(url: str, recipe: Recipe, threads: int, share: int, of: int, device: str) -> None:
    """Every `of`-th training of the sweep, from `share` on, one after the other."""
    from raydr.grading import evaluate, training
    from raydr.identity import seed_of

    target, grader = Run(url), recipe.sweep.grader
    real = shards.read(target, "real", schema.REAL, ensemble.COLUMNS)
    digests = np.array(real["sha256"].to_pylist())
    array = ensemble.image_array(target, recipe.ingest.px, [("real", schema.REAL)], digests)
    grades = np.asarray(real["grade"].fill_null(-1)).astype(np.int64)
    rows = selection.part_of(real, "train", recipe.fold)
    for seed in range(share, recipe.sweep.num_seeds, of):
        trained = training.train(
            grader,
            array,
            array.positions(list(digests[rows])),
            grades[rows],
            seed=seed_of("trial", recipe.seed, recipe.replicate, seed),
            device=device,
            num_threads=threads,
        )
        tables, trial = [], f"bare-{seed}"
        for split in ("validation", "test"):
            held = selection.part_of(real, split, recipe.fold)
            ids, positions = real["image_id"].take(held).to_pylist(), array.positions(list(digests[held]))
            table, values = evaluate.evaluate_grader(
                trained.model, array, positions, ids, grades[held], trial_id=trial, split=split
            )
            tables.append(table)
        shards.commit(
            target, f"trials/predictions/{trial}.parquet", pa.concat_tables(tables), schema.PREDICTIONS, trial
        )
        row = {"trial_id": trial, "seed": seed, "balanced_accuracy": values["balanced_accuracy"]}
        row["seconds"] = trained.seconds
        shards.commit(
            target, f"trials/results/{trial}.parquet", workload.fill(row, 1, schema.TRIALS), schema.TRIALS, trial
        )


LOOPS: dict[str, Callable[..., None]] = {
    "phantoms": phantoms,
    "photographs": photographs,
    "loader": loader,
    "synthesize": synthesize,
    "score": score,
    "train_generator": train_generator,
    "train_graders": train_graders,
}


def main() -> None:
    from raydr.bench import peers
    from raydr.record import restore

    arguments = json.loads(sys.argv[2])
    if "recipe" in arguments:
        arguments["recipe"] = restore(Recipe, arguments["recipe"])
    {**LOOPS, **peers.LOOPS}[sys.argv[1]](**arguments)


if __name__ == "__main__":
    main()
