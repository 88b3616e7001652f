"""`raydr bench`: measure stages against their bare loops and peers, print the tables, keep the JSON."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raydr import shapes, terminal
from raydr.bench import finetune, gpu, ingest, memory, plots, results, scaling, score, sweep, synthesize
from raydr.bench.rig import Rig, machine
from raydr.bench.workload import FULL, QUICK
from raydr.cluster import session
from raydr.errors import UserError

# In the order in which `all` runs them: what needs nothing prepared first.
STAGES: dict[str, Callable[[Rig], None]] = {
    "ingest": ingest.run,
    "score": score.run,
    "synthesize": synthesize.run,
    "finetune": finetune.run,
    "sweep": sweep.run,
}


def run(options: Any) -> int:
    """Measure what is asked for; writes FILE and FILE.md where --json names one."""
    if options.shape not in shapes.SHAPES:
        raise UserError(f"There is no shape {options.shape!r}: choose one of {', '.join(shapes.SHAPES)}")
    before = results.load(options.against) if options.against else None
    sizes = QUICK if options.quick else FULL
    folder = Path(options.work or tempfile.mkdtemp(prefix="raydr-bench-"))
    folder.mkdir(parents=True, exist_ok=True)
    result = results.Result(machine(sizes.repeats))
    clock = terminal.Clock()
    try:
        if options.what == "scaling":
            scaling.run(folder, result, options.quick)  # starts Ray with more logical CPUs than there are
        elif options.what == "gpu":
            gpu.run(result)
        elif options.what == "memory":
            with session.session(shapes.SHAPES[options.shape]):
                memory.run(folder, result, memory.QUICK_SIZES if options.quick else memory.SIZES)
        else:
            stages(options, Rig(folder, shapes.SHAPES[options.shape], sizes, result))
    finally:
        if not options.work:
            shutil.rmtree(folder, ignore_errors=True)
    result.add("whole command", clock.seconds, "s", options.what)
    keep(result, options)
    print(results.markdown(result))
    for line in results.compare(before, result) if before else []:
        terminal.note(line)
    return 0


def stages(options: Any, rig: Rig) -> None:
    """The stages that are asked for, in one Ray session."""
    clock = terminal.Clock()
    with session.session(rig.shape):
        rig.result.add("start of Ray", clock.seconds, "s", "once a command")
        for name in list(STAGES) if options.what == "all" else [options.what]:
            STAGES[name](rig)
            keep(rig.result, options)  # what is measured survives what fails after it


def keep(result: results.Result, options: Any) -> None:
    if options.json:
        path = Path(options.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(results.to_json(result))
        text = results.markdown(result)
        for name, picture in plots.figures(result.scaling).items():
            path.with_suffix(f".{name}.svg").write_text(picture)
            text += f"\n![{name}]({path.stem}.{name}.svg)\n"
        path.with_suffix(".md").write_text(text)
