"""`raydr bench`: measure stages against their bare loops and peers, print the tables, keep the JSON."""

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from raydr import shapes, terminal
from raydr.bench import finetune, gpu, ingest, memory, plots, results, scaling, score, sd15, sweep, synthesize
from raydr.bench.rig import Rig, machine
from raydr.bench.workload import FULL, QUICK, Sizes
from raydr.cluster import session
from raydr.diffusion import compiling
from raydr.errors import UserError, require
from raydr.shapes import Shape

# In the order in which `all` runs them: what needs nothing prepared first.
STAGES: dict[str, Callable[[Rig], None]] = {
    "ingest": ingest.run,
    "score": score.run,
    "synthesize": synthesize.run,
    "finetune": finetune.run,
    "sweep": sweep.run,
}


def run(options: Any) -> int:
    """Measure what is asked for; writes FILE, and its tables as .md beside it, where --json names one."""
    shape = one_machine(options.shape, options.cpus)
    if options.cpus and options.what in ("scaling", "gpu"):
        raise UserError(f"--cpus belongs to the stages and to bench memory, not to bench {options.what}")
    if options.cpus == 1 and options.what in ("all", "synthesize"):
        raise UserError("--cpus 1 holds no generator and its sink at once: take 2, or another stage than synthesize")
    scales = curves(options)
    before = results.load(options.against) if options.against else None
    sizes = sizes_of(options)
    if options.sd15:
        sd15.check(options.what, shape)
    folder = Path(options.work or tempfile.mkdtemp(prefix="raydr-bench-"))
    folder.mkdir(parents=True, exist_ok=True)
    result = results.Result(machine(sizes.repeats) | ({"used_cpus": options.cpus} if options.cpus else {}))
    clock = terminal.Clock()
    try:
        if options.what == "scaling":
            scaling.run(folder, result, scales)  # starts Ray with more logical CPUs than there are
        elif options.what == "gpu":
            gpu.run(result)
        elif options.what == "memory":
            with session.session(shape):
                memory.run(folder, result, memory.QUICK_SIZES if options.quick else memory.SIZES)
        else:
            rig = Rig(folder, shape, sizes, result)
            if options.sd15:
                compiling.share_cache(folder / "inductor")  # by workers and bare loops: each compiles the same
                rig.work = partial(sd15.recipe, base=sd15.write(folder / "sd15"))
            stages(options, rig)
    finally:
        keep(result, options)  # what is measured survives what ends the command
        if not options.work:
            shutil.rmtree(folder, ignore_errors=True)
    result.add("whole command", clock.seconds, "s", options.what)
    keep(result, options)
    print(results.markdown(result))
    for line in results.compare(before, result) if before else []:
        terminal.note(line)
    return 0


def one_machine(name: str, num_cpus: int | None = None) -> Shape:
    """The shape `name` with a Ray of its own on `num_cpus` of this machine, whatever cluster the command runs in.

    Both arms of a pair must have the same machine, and the meter sees its processes alone. Raises UserError for a
    shape that spreads over machines, and for one with GPUs where this machine has none.
    """
    if name not in shapes.SHAPES:
        raise UserError(f"There is no shape {name!r}: choose one of {', '.join(shapes.SHAPES)}")
    shape = shapes.SHAPES[name]
    if shape.address:
        raise UserError(
            f"bench measures the one machine that it runs on, and the shape {name} spreads over a cluster: take "
            "--shape workstation, as a job on a GPU node with `ray job submit --entrypoint-num-gpus 1`"
        )
    if num_cpus is not None and not 1 <= num_cpus <= (os.cpu_count() or 1):
        raise UserError(f"--cpus must lie in 1..{os.cpu_count()}, this machine's cores, not {num_cpus}")
    if shape.generator_gpus and not torch.cuda.is_available():
        raise UserError(
            f"The shape {name} takes a GPU, and PyTorch sees none here: take --shape laptop, or run bench on a machine "
            "that has one"
        )
    # What a job says of its cluster would be taken up by the Ray that starts here.
    os.environ.pop("RAY_JOB_CONFIG_JSON_ENV_VAR", None)
    return dataclasses.replace(shape, address="local", num_cpus=num_cpus or shape.num_cpus)


def sizes_of(options: Any) -> Sizes:
    """How much of each stage is measured; UserError where no stage is, or not the one that --steps speaks of."""
    small, large = (QUICK, sd15.QUICK) if options.quick else (FULL, sd15.SIZES)
    given = {name: value for name in ("repeats", "steps") if (value := getattr(options, name)) is not None}
    for name, value in given.items():
        require(value >= 1, f"--{name} must be at least 1, not {value}")
    stages = ("all", *STAGES)
    require(
        not given or options.what in stages, f"--{next(iter(given), '')} belongs to the stages, not to {options.what}"
    )
    require(
        "steps" not in given or options.what == "finetune", f"--steps belongs to bench finetune, not to {options.what}"
    )
    if "steps" in given:
        given["finetune_steps"] = given.pop("steps")
    return dataclasses.replace(large if options.sd15 else small, **given)


def curves(options: Any) -> scaling.Sizes:
    """Sizes of `bench scaling`: its defaults, or those that are named; UserError where something else is measured."""
    named = {name: getattr(options, name) for name in ("actors", "planned", "rows")}
    given: dict[str, Any] = {name: tuple(sorted(set(value))) for name, value in named.items() if value is not None}
    if given and options.what != "scaling":
        raise UserError(f"--{next(iter(given))} belongs to `raydr bench scaling`, not to bench {options.what}")
    return dataclasses.replace(scaling.QUICK if options.quick else scaling.FULL, **given)


def stages(options: Any, rig: Rig) -> None:
    """The stages that are asked for, in one Ray session."""
    clock = terminal.Clock()
    with session.session(rig.shape):
        rig.result.add("start of Ray", clock.seconds, "s", "once a command")
        for name in list(STAGES) if options.what == "all" else [options.what]:
            STAGES[name](rig)
            keep(rig.result, options)  # a kill leaves what is measured too


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
