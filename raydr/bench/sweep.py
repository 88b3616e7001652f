"""The sweep: Tune against bare loops of the same trainings."""

from raydr import schema, shards
from raydr.bench import workload
from raydr.bench.fits import median
from raydr.bench.results import Measured
from raydr.bench.rig import Rig, plain
from raydr.cluster import sweep
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
        return _graders(bench, processes)

    seconds: list[float] = []
    verdict = bench.pair("sweep", "trials", pipeline, bare, bar=0.95)
    alone = _graders(bench, 1)
    bench.result.add(
        f"{processes} bare trainings over one", verdict.bare * alone.seconds.each, "x", "what these cores allow"
    )
    rest = processes / verdict.pipeline - median(seconds)
    bench.result.add("a trial beyond its training", rest, "s", "evaluation, commits, Tune's turn-around; bar 3")


def tuned(bench: Rig, target: Run) -> None:
    """The stage itself; UserError where a trial failed, since half a sweep is no measurement."""
    failed = sweep.run(bench.recipe, target, bench.shape)["failed"]
    if failed:
        raise UserError(f"{len(failed)} trials of the benchmark's sweep failed, the first is {failed[0]}: see above")


def _graders(bench: Rig, processes: int) -> Measured:
    target = bench.copy("sweep-bare")
    common = {"url": target.url, "recipe": plain(bench.recipe), "threads": 1, "of": processes, "device": bench.device}
    arguments = [common | {"share": share} for share in range(processes)]
    return bench.bare("train_graders", workload.commits(target, "trials/results"), *arguments)


def training_seconds(target: Run) -> float:
    """Median seconds of the training loops of a finished sweep."""
    return median(shards.read(target, "trials/results", schema.TRIALS, ["seconds"])["seconds"].to_pylist())
