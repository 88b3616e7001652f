"""Synthesis: the stream of tickets against one bare process, and against how others do it."""

import dataclasses
import math
from typing import Any

from raydr import shards
from raydr.bench import flops, peers, results, workload
from raydr.bench.fits import median
from raydr.bench.results import Measured, Peer
from raydr.bench.rig import Rig, plain
from raydr.cluster import synthesize
from raydr.config import Recipe


@dataclasses.dataclass(frozen=True)
class Rate:
    """Images a second, and the share of them inside the band (nan where nothing is scored)."""

    images: float
    share: float

    @property
    def accepted(self) -> float:
        return self.images * self.share


def run(bench: Rig) -> None:
    """Tickets, actors and sink against one process with as many threads; beside each bare run the published scheme."""
    base = bench.recipe
    ours: list[Rate] = []
    theirs: list[Rate] = []
    streams: list[Measured] = []
    sides: list[Measured] = []
    actors = min(bench.shape.generators, bench.cpus)

    def pipeline(number: int) -> Measured:
        found, rate = stream(bench, base)
        ours.append(rate)
        streams.append(found)
        return found

    def bare(number: int) -> Measured:
        found = processes(bench, 1)
        sides.append(processes(bench, actors) if actors > 1 else found)
        theirs.append(scheme(bench, "published"))
        return found

    each, peak = image_flops(bench)
    verdict = bench.pair("synthesize", "images", pipeline, bare, bar=0.95, flops=each, peak_flops=peak)
    if actors > 1:
        note = f"against {actors} bare processes of {bench.cpus // actors} threads: what one would start by hand"
        side = results.pair("synthesize, side by side", "images", streams, sides, bar=0.95, note=note)
        bench.result.pairs.append(side)
        verdict = side  # the sterner limit: two threads of one process disturb each other
    extra = verdict.cpu_seconds["pipeline"] - verdict.cpu_seconds["bare"]
    bench.result.add("framework CPU", 1000 * extra, "ms an image", "synthesize, pipeline less bare loop; bar 5")
    started = verdict.startup_seconds["pipeline"] - verdict.startup_seconds["bare"]
    bench.result.add("start-up beyond imports and models", started, "s", "synthesize; bar 20")
    versus(bench, "published scheme", "our steps", ours, theirs)
    sampler = dataclasses.replace(base.synthesize.sampler, name="base", steps=peers.PUBLISHED_STEPS)
    slow = dataclasses.replace(base, synthesize=dataclasses.replace(base.synthesize, sampler=sampler))
    _, equal = stream(bench, slow)
    versus(bench, "published scheme", "equal steps", [equal], [scheme(bench, "published")])
    stock = scheme(bench, "stock")
    versus(bench, "diffusers loop", "equal steps", [equal], [stock])
    versus(bench, "diffusers loop", "our steps", [ours[-1]], [stock])


def processes(bench: Rig, count: int) -> Measured:
    """The bare loop over all shards, shared by `count` processes."""
    target = bench.copy("synthesize-bare")
    common = {
        "url": target.url,
        "recipe": plain(bench.recipe),
        "threads": max(1, bench.cpus // count),
        "device": bench.device,
        "of": count,
    }
    points = workload.commits(target, "synthetic", count)
    return bench.bare("synthesize", points, *[common | {"share": share} for share in range(count)])


def stream(bench: Rig, recipe: Recipe) -> tuple[Measured, Rate]:
    """One synthesis of `recipe` by the stage itself, on a fresh copy."""
    target = bench.copy("synthesize-pipeline")
    points = workload.commits(target, "synthetic", min(bench.shape.generators, bench.cpus))
    found = bench.pipeline(lambda: synthesize.run(recipe, target, bench.shape), points)
    records = shards.commits(target, "synthetic").values()
    share = sum(record.extra.get("accepted", 0) for record in records) / sum(record.rows for record in records)
    return found, Rate(1 / found.seconds.each, share)


def scheme(bench: Rig, loop: str) -> Rate:
    """Another way to make images from the same generator, as a process of its own."""
    target = bench.copy(f"synthesize-{loop}")
    arguments = {
        "url": target.url,
        "recipe": plain(bench.recipe),
        "threads": bench.cpus,
        "batches": bench.sizes.peer_batches,
        "device": bench.device,
    }
    found = bench.bare(loop, workload.progress(target), arguments)
    said = target.read_json(workload.PROGRESS)
    return Rate(1 / found.seconds.each, said["accepted"] / said["made"] if "made" in said else math.nan)


def versus(bench: Rig, name: str, steps: str, ours: list[Rate], theirs: list[Rate]) -> None:
    """Images a second, and accepted ones where both filter and some pass."""
    columns = [("images", "images", "PNDM, 30 steps")]
    if all(rate.share > 0 for rate in [*ours, *theirs]):
        low, high = peers.PUBLISHED_BAND
        shares = f"ours {median(r.share for r in ours):.0%} of all, theirs {median(r.share for r in theirs):.0%}"
        columns.append(("accepted", "accepted images", f"band {low}-{high}: {shares} (best 12 of 16)"))
    for field, unit, note in columns:
        a, b = [getattr(rate, field) for rate in ours], [getattr(rate, field) for rate in theirs]
        ratios = tuple(x / y for x, y in zip(a, b, strict=True))
        bench.peer(Peer(f"{name}, {steps}, {unit}", "synthesize", unit, median(b), median(a), ratios, note))


def image_flops(bench: Rig) -> tuple[float, float]:
    """(FLOPs of one image, peak FLOP/s of the device at the sampler's precision)."""
    import torch

    from raydr.diffusion.model import PRECISIONS, load_base
    from raydr.diffusion.sampler import PromptCache, decode, sample_latents

    recipe = bench.recipe
    sampler, px = recipe.synthesize.sampler, recipe.finetune.px
    precision = sampler.precision if bench.device == "cuda" else "fp32"
    base = load_base(recipe.finetune.base, precision, recipe.finetune.revision, bench.device)
    prompts = PromptCache(base)

    def once() -> Any:
        return decode(
            base, sample_latents(base, prompts, "an image", list(range(sampler.batch)), sampler, px), sampler.batch
        )

    before = torch.get_num_threads()
    torch.set_num_threads(bench.cpus)
    peak = flops.peak_flops(bench.device, PRECISIONS[sampler.precision])
    torch.set_num_threads(before)
    bench.result.add("peak", peak / 1e9, "GFLOP/s", f"matrix product in {sampler.precision}, {bench.cpus} threads")
    return flops.count(once) / sampler.batch, peak
