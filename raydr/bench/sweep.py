"""The sweep: Tune against bare loops of the same trainings."""

import dataclasses
import shutil
import time

import numpy as np

from raydr import schema, selection, shards
from raydr.bench import workload
from raydr.bench.fits import median
from raydr.bench.results import Measured
from raydr.bench.rig import Rig, plain
from raydr.cluster import ensemble, session, sweep
from raydr.errors import UserError
from raydr.storage import Run


def run(bench: Rig) -> None:
    """As many one-thread trials at once as there are cores, against as many bare processes."""
    processes = max(1, int(bench.cpus // bench.shape.trial_cpus))

    def pipeline(number: int) -> Measured:
        target = bench.copy("sweep-pipeline")
        found = bench.pipeline(lambda: tuned(bench, target), workload.commits(target, "trials/results"))
        seconds.append(training_seconds(target))
        return found

    def bare(number: int) -> Measured:
        found, target = _graders(bench, processes)
        bare_seconds.append(training_seconds(target))
        return found

    seconds: list[float] = []
    bare_seconds: list[float] = []
    verdict = bench.pair("sweep", "trials", pipeline, bare, bar=0.95)
    alone, target = _graders(bench, 1)
    one = training_seconds(target)
    bench.result.add(
        f"{processes} bare trainings over one", verdict.bare * alone.seconds.each, "x", "what these cores allow"
    )
    # Of the trainings alone: what Tune adds between them is the pair's business, and the line's below.
    gain, bare_gain = (processes * one / median(each) for each in (seconds, bare_seconds))
    bench.result.add(
        f"{processes} trials at once over one bare training", gain, "x",
        f"training alone; {gain / bare_gain:.3f} of the {bare_gain:.2f} x of bare processes, bar .95",
    )  # fmt: skip
    rest = processes / verdict.pipeline - median(seconds)
    bench.result.add("a trial beyond its training", rest, "s", "evaluation, commits, Tune's turn-around; bar 3")
    first_epoch(bench)


def tuned(bench: Rig, target: Run) -> None:
    """The stage itself; UserError where a trial failed, since half a sweep is no measurement."""
    failed = sweep.run(bench.recipe, target, bench.shape)["failed"]
    if failed:
        raise UserError(f"{len(failed)} trials of the benchmark's sweep failed, the first is {failed[0]}: see above")


def _graders(bench: Rig, processes: int) -> tuple[Measured, Run]:
    """Bare loops side by side, and the run that holds their rows."""
    target = bench.copy("sweep-bare")
    common = {"url": target.url, "recipe": plain(bench.recipe), "threads": 1, "of": processes, "device": bench.device}
    arguments = [common | {"share": share} for share in range(processes)]
    return bench.bare("train_graders", workload.commits(target, "trials/results"), *arguments), target


def training_seconds(target: Run) -> float:
    """Median seconds of the training loops of a finished sweep."""
    return median(shards.read(target, "trials/results", schema.TRIALS, ["seconds"])["seconds"].to_pylist())


def first_epoch(bench: Rig) -> None:
    """What a grader's first epoch waits for its images, and what decoding them took, which a node does once."""
    from raydr.grading import training

    target, recipe = bench.copy("sweep-epoch"), bench.recipe
    shutil.rmtree(session.node_cache(target) / "arrays", ignore_errors=True)
    real = shards.read(target, "real", schema.REAL, ensemble.COLUMNS)
    rows = selection.part_of(real, "train", recipe.fold)
    digests, grades = real["sha256"].take(rows).to_pylist(), np.asarray(real["grade"].take(rows)).astype(np.int64)
    started = time.perf_counter()
    array = ensemble.image_array(target, recipe.ingest.px, [("real", schema.REAL)], digests)
    decoding = time.perf_counter() - started
    grader = dataclasses.replace(recipe.sweep.grader, steps=max(2, len(rows) // recipe.sweep.grader.batch))
    found = training.train(
        grader, array, array.positions(digests), grades, seed=0, device=bench.device, num_threads=1
    )  # fmt: skip
    (waited,) = [event["waited_seconds"] for event in found.history if event.get("step") == grader.steps]
    note = f"of {found.seconds:.1f} s, {len(rows)} images; decoding them, once a node, took {decoding:.2f} s; bar 5"
    bench.result.add("first epoch's wait for images", 100 * waited / found.seconds, "%", note)
