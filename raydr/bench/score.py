"""Scoring: the ensemble on uint8 tensors against its bare forward passes, and against images decoded one by one."""

import os
import time
from collections.abc import Callable

import numpy as np
import torch

from raydr.bench import flops
from raydr.bench.fits import Line, median
from raydr.bench.results import Measured, Peer
from raydr.bench.rig import Rig
from raydr.cluster import ensemble
from raydr.fundus.phantom import render
from raydr.grading import pixels
from raydr.images import decode, encode
from raydr.storage import Run

BATCH = 64


def run(bench: Rig) -> None:
    """In one process: what the generator's actor does with its pixels, less what no scorer could leave out."""
    target = Run(str(bench.prepare()))
    judges = ensemble.load(bench.recipe, target, ensemble.identity(bench.recipe, target), "score", bench.device)
    images = np.stack([render(seed=987_655, index=k, grade=k % 5, px=64)[0] for k in range(BATCH)])
    encoded = [encode(image, "png") for image in images]
    floats = pixels.to_input(torch.from_numpy(images), images.shape[1], judges.device)
    ready = {model.px: pixels.resize(floats, model.px) for model in judges.models}
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

    def arm(work: Callable[[], object]) -> Callable[[int], Measured]:
        return lambda number: timed(work, bench.sizes.score_batches)

    each = flops.count(forward) / BATCH
    peak = flops.peak_flops(bench.device, torch.float32)
    scored = arm(lambda: judges.probabilities(images))
    # The first calls choose kernels and fill caches, for both arms.
    judges.probabilities(images)
    forward()
    note = "probabilities from uint8 pixels, against the members' forward passes alone on tensors that are ready"
    verdict = bench.pair("score", "images", scored, arm(forward), bar=0.95, flops=each, peak_flops=peak, note=note)
    ours, theirs = [], []
    for _ in range(max(3, bench.sizes.repeats)):
        ours.append(scored(0).seconds.each)
        theirs.append(timed(one_by_one, 1).seconds.each)
    ratios = tuple(b / a for a, b in zip(ours, theirs, strict=True))
    note = "each member decodes each PNG again"
    bench.peer(Peer("decoded one by one", "score", "images", 1 / median(theirs), verdict.pipeline, ratios, note))


def timed(work: Callable[[], object], batches: int) -> Measured:
    """Seconds and CPU-seconds an image of `batches` calls; start-up is none, since all is loaded."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(batches):
        work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    count = batches * BATCH
    return Measured(Line(0.0, wall / count), Line(0.0, cpu / count), wall, 0, 0.0, os.getloadavg()[0])
