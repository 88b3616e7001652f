"""Fine-tuning: Ray Train against the bare Trainer and a plain accelerate loop, two workers against two processes."""

import dataclasses

from raydr.bench import flops, workload
from raydr.bench.fits import Point, median
from raydr.bench.meter import Recording
from raydr.bench.results import Measured, Pair, Peer
from raydr.bench.rig import Rig, plain
from raydr.cluster import finetune
from raydr.config import Recipe


def run(bench: Rig) -> None:
    """Ray Train against the Trainer's loop alone and a plain accelerate loop; two workers against two processes."""
    steps, base = bench.sizes.finetune_steps, bench.recipe
    one = workload.training(base, steps)
    samples = 2.0 * one.finetune.batch_pairs
    work = sample_flops(bench, one)
    verdict = _train_pair(bench, "finetune", one, 1, 0.97, work)
    rates = []
    for _ in range(bench.sizes.repeats):
        target = bench.copy("finetune-accelerate", generators=False)
        arguments = {"url": target.url, "recipe": plain(one), "threads": bench.cpus, "device": bench.device}
        rates.append(1 / bench.bare("accelerate", workload.progress(target), arguments).seconds.each)
    note = "every step encodes pixels and prompts again"
    ratios = tuple(verdict.pipeline / rate for rate in rates)
    bench.peer(Peer("accelerate loop", "finetune", "samples", median(rates), verdict.pipeline, ratios, note))
    if bench.cpus < 2 or bench.device != "cpu":
        return
    pair = _train_pair(bench, "finetune, 2 workers", one, 2, 0.95, work)
    target = bench.copy("finetune-one", generators=False)
    arguments = {"url": target.url, "recipe": plain(one), "threads": 1, "device": bench.device}
    alone = bench.bare("train_generator", workload.steps(target, samples), arguments)
    bench.result.add(
        "two bare trainings over one", pair.bare * alone.seconds.each, "x", "what these cores allow two processes"
    )


def sample_flops(bench: Rig, recipe: Recipe) -> tuple[float, float]:
    """(FLOPs of one sample of a step, forward and backward; peak FLOP/s of the device at the training's precision)."""
    from raydr.bench.steps import trainer
    from raydr.diffusion.model import PRECISIONS, load_base

    config = recipe.finetune
    run = trainer(load_base(config.base, config.precision, config.revision, bench.device), config, 8)
    each = flops.count(lambda: run.run(1)) / (2 * config.batch_pairs * config.accumulation)
    run.close()
    return each, flops.peak_flops(bench.device, PRECISIONS[config.precision])


def _train_pair(bench: Rig, name: str, recipe: Recipe, workers: int, bar: float, work: tuple[float, float]) -> Pair:
    """`workers` ranks of Ray Train against as many bare processes with the same pairs each."""
    samples, threads = 2.0 * recipe.finetune.batch_pairs, max(1, bench.cpus // workers)
    shape = dataclasses.replace(bench.shape, train_workers=workers)
    whole = workload.two_workers(recipe) if workers == 2 else recipe

    def pipeline(number: int) -> Measured:
        target = bench.copy("finetune-pipeline", generators=False)
        return bench.pipeline(lambda: finetune.run(whole, target, shape), workload.steps(target, workers * samples))

    def bare(number: int) -> Measured:
        targets = [bench.copy(f"finetune-bare-{k}", generators=False) for k in range(workers)]
        common = {"recipe": plain(recipe), "threads": threads, "device": bench.device}

        def points(record: Recording) -> list[Point]:
            events = [e for target in targets for e in workload.logged(target.path("logs"), samples)]
            return workload.cumulative(events, record.started)

        return bench.bare("train_generator", points, *[common | {"url": target.url} for target in targets])

    return bench.pair(name, "samples", pipeline, bare, bar=bar, flops=work[0], peak_flops=work[1])
