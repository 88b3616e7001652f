"""The rig of one command: the prepared run, fresh copies of it, arms as recorded runs, pairs in the order ABBA."""

import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from raydr import terminal
from raydr.bench import workload
from raydr.bench.fits import Point, abba
from raydr.bench.meter import Recording, recording
from raydr.bench.results import Measured, Pair, Peer, Result, measured, pair
from raydr.bench.workload import Sizes
from raydr.cluster import ensemble, finetune, ingest, session
from raydr.config import Recipe
from raydr.identity import canonical
from raydr.shapes import Shape
from raydr.storage import Run

# A bare loop that says nothing for so long is broken.
PATIENCE_SECONDS = 1800


@dataclasses.dataclass
class Rig:
    """Where a command measures, how much, and what it found so far."""

    folder: Path
    shape: Shape
    sizes: Sizes
    result: Result
    work: Callable[[Sizes], Recipe] = workload.recipe
    prepared: Path | None = None

    @property
    def recipe(self) -> Recipe:
        return self.work(self.sizes)

    @property
    def device(self) -> str:
        return "cuda" if self.shape.generator_gpus > 0 else "cpu"

    @property
    def cpus(self) -> int:
        return session.cpus()

    def fresh(self, name: str) -> Run:
        """An empty run of this name; what was there goes."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        return Run(str(self.folder / name))

    def copy(self, name: str, generators: bool = True) -> Run:
        """A copy of the prepared run: photographs, graders, decoded images and, if asked for, the generator."""
        target = self.fresh(name)
        assert target.local is not None
        left_out = ["_ray", "logs", "branches", *([] if generators else ["generators"])]
        shutil.copytree(self.prepare(), target.local, ignore=shutil.ignore_patterns(*left_out))
        return target

    def prepare(self) -> Path:
        """The prepared run, made by the stages themselves, which go on where an earlier command on `folder` stopped."""
        if self.prepared is None:
            target = Run(str(self.folder / "prepared"))
            terminal.note("preparing: photographs, graders, one generator")
            ingest.run(self.recipe, target)
            ensemble.run(self.recipe, target, self.shape)
            finetune.run(self.recipe, target, self.shape)
            assert target.local is not None
            self.prepared = target.local
        return self.prepared

    # -- arms ----------------------------------------------------------------------------------

    def record(self, work: Callable[[], Any]) -> Recording:
        with recording() as found:
            work()
        return found

    def pipeline(self, work: Callable[[], Any], points: Callable[[Recording], list[Point]]) -> Measured:
        """Run a stage under the recorder; `points` reads its progress from what it left behind."""
        found = self.record(work)
        return measured(found, points(found))

    def bare(self, loop: str, points: Callable[[Recording], list[Point]], *arguments: dict[str, Any]) -> Measured:
        """Run a bare loop, once in a process for each of `arguments`, side by side."""
        with recording(newcomers=True) as record:
            run_loops(loop, arguments)
        return measured(record, points(record))

    def pair(
        self,
        name: str,
        unit: str,
        pipeline: Callable[[int], Measured],
        bare: Callable[[int], Measured],
        **options: Any,
    ) -> Pair:
        """Measure both arms in the order ABBA, `sizes.repeats` pairs, and keep the verdict."""
        runs: dict[str, list[Measured]] = {"pipeline": [], "bare": []}
        for number, arm in abba(self.sizes.repeats):
            found = (pipeline if arm == "pipeline" else bare)(number)
            runs[arm].append(found)
            terminal.note(
                f"{name} {number + 1}/{self.sizes.repeats} {arm}: {1 / found.seconds.each:.3g} {unit}/s after "
                f"{found.seconds.start:.1f} s, {found.cpu.each:.4f} CPU-s each; load {found.load:.1f}, others "
                f"{found.others:.1f} cores"
            )
        verdict = pair(name, unit, runs["pipeline"], runs["bare"], **options)
        self.result.pairs.append(verdict)
        low, high = verdict.spread
        terminal.line("bench", f"{name}: efficiency {verdict.efficiency:.3f} [{low:.3f}, {high:.3f}]")
        return verdict

    def peer(self, peer: Peer) -> None:
        self.result.peers.append(peer)
        terminal.line("bench", f"{peer.stage} against {peer.name}: {peer.speedup:.2f} x")


def run_loops(loop: str, arguments: tuple[dict[str, Any], ...]) -> None:
    """One process for each of `arguments`, at once; RuntimeError with the end of its output where one fails."""
    command = [sys.executable, "-m", "raydr.bench.bare", loop]
    started = []
    for item in arguments:
        threads = str(item.get("threads", 1))
        environment = os.environ | {"OMP_NUM_THREADS": threads}
        started.append(
            subprocess.Popen(
                [*command, canonical(item)],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        for process in started:
            _, said = process.communicate(timeout=PATIENCE_SECONDS)
            if process.returncode:
                raise RuntimeError(f"the bare loop {loop} ended with {process.returncode}:\n{said[-2000:]}")
    finally:
        for process in started:
            process.kill()


def machine(repeats: int) -> dict[str, Any]:
    """What the figures were made on."""
    from raydr.cluster.provenance import revision

    return {
        "cpu": cpu_name(),
        "cpus": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "ray", "diffusers", "timm", "pyarrow")},
        "revision": revision(),
        "repeats": repeats,
        "load_at_start": os.getloadavg()[0],
    }


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown CPU"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown CPU")


def plain(recipe: Recipe) -> dict[str, Any]:
    """A recipe as JSON, for another process."""
    return json.loads(canonical(recipe))
