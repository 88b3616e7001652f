"""Scoring: `raydr rescore` against bare processes that judge the same shards, and the ensemble against its limit."""

import os
import shutil
import time
from collections.abc import Callable

import numpy as np
import torch

from raydr.bench import flops, workload
from raydr.bench.fits import Line, median
from raydr.bench.results import Measured, Peer
from raydr.bench.rig import Rig, plain
from raydr.cluster import ensemble, rescore
from raydr.fundus.phantom import render
from raydr.grading import pixels
from raydr.images import decode, encode
from raydr.storage import Run

BATCH = 64


def run(bench: Rig) -> None:
    """Ray Data's actors against as many bare processes with as many threads each."""
    recipe, shape = bench.recipe, bench.shape
    samples = bench.copy("score-samples", generators=False)
    workload.write_samples(samples, bench.sizes.score_shards)
    ensemble_id, actors = ensemble.identity(recipe, samples), min(shape.generators, bench.sizes.score_shards)
    table = f"scores/{ensemble_id}"

    def copy(name: str) -> Run:
        target = bench.fresh(name)
        assert samples.local is not None
        assert target.local is not None
        shutil.copytree(samples.local, target.local)
        return target

    def pipeline(number: int) -> Measured:
        target = copy("score-pipeline")
        return bench.pipeline(
            lambda: rescore.run(recipe, target, ensemble_id, shape=shape), workload.commits(target, table, actors)
        )

    def bare(number: int) -> Measured:
        target = copy("score-bare")
        threads = max(1, bench.cpus // actors)
        common = {"url": target.url, "recipe": plain(recipe), "threads": threads, "device": bench.device, "of": actors}
        points = workload.commits(target, table, actors)
        return bench.bare("score", points, *[common | {"share": k} for k in range(actors)])

    inner(bench, samples, bench.pair("score", "images", pipeline, bare, bar=0.95).pipeline)


def inner(bench: Rig, target: Run, streamed: float) -> None:
    """Beside it, in one process: the members' forward passes alone, and a loop that decodes for every member."""
    judges = ensemble.load(bench.recipe, target, ensemble.identity(bench.recipe, target), "score", bench.device)
    images = np.stack([render(seed=987_655, index=k, grade=k % 5, px=64)[0] for k in range(BATCH)])
    encoded = [encode(image, "png") for image in images]
    floats = pixels.to_input(torch.from_numpy(images), images.shape[1], judges.device)
    ready = {model.px: pixels.resize(floats, model.px) for model in judges.models}
    threads = torch.get_num_threads()
    torch.set_num_threads(bench.cpus)

    @torch.inference_mode()
    def forward() -> None:
        for model in judges.models:
            torch.softmax(model(ready[model.px]), dim=1).cpu()

    @torch.inference_mode()
    def one_by_one() -> None:
        for model in judges.models:
            parts = [torch.from_numpy(np.array(decode(data))) for data in encoded]
            model(torch.cat([pixels.to_input(part[None], model.px, judges.device) for part in parts]))

    def ours() -> None:
        judges.probabilities(images)

    each, peak = flops.count(forward) / BATCH, flops.peak_flops(bench.device, torch.float32)
    for name, work, note in (
        ("forward passes alone", forward, "the limit: tensors that are ready and of each member's size"),
        ("decoded one by one", one_by_one, "each member decodes each PNG again, image by image"),
    ):
        for call in (ours, work):
            call()  # the first calls choose kernels and fill caches
        pairs = [(timed(ours, bench.sizes.score_batches), timed(work, bench.sizes.score_batches)) for _ in range(3)]
        rates = [1 / median(arm) for arm in zip(*((a.seconds.each, b.seconds.each) for a, b in pairs), strict=True)]
        ratios = tuple(b.seconds.each / a.seconds.each for a, b in pairs)
        bench.peer(Peer(name, "score", "images", rates[1], rates[0], ratios, f"in one process; {note}"))
    torch.set_num_threads(threads)
    share = f"{each / 1e6:.0f} MFLOP an image, MFU {each * streamed / peak:.1%}"
    bench.result.add("scoring", streamed, "images/s", share)


def timed(work: Callable[[], object], batches: int) -> Measured:
    """Seconds and CPU-seconds an image of `batches` calls; start-up is none, since all is loaded."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(batches):
        work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    count = batches * BATCH
    return Measured(Line(0.0, wall / count), Line(0.0, cpu / count), wall, 0, 0.0, os.getloadavg()[0])
