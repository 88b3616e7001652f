"""What the commands about an existing run do; each takes the parsed options and returns the exit code.

The stages themselves are in `raydr.cluster`; heavy imports stay inside the command that needs them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydr import terminal
from raydr.errors import UserError

if TYPE_CHECKING:
    from raydr.config import Recipe
    from raydr.storage import Run


def _stored(out: str) -> "tuple[Recipe, Run]":
    """The run in `out` and its recipe; UserError where there is none."""
    from raydr.record import stored_recipe
    from raydr.storage import Run

    target = Run(out)
    recipe = stored_recipe(target)
    if recipe is None:
        raise UserError(f"There is no run in {target.url}: name the --out of a run, or start one with `raydr run`")
    return recipe, target


def _places(out: str) -> "list[Run]":
    """Where the tables of the run in `out` lie: itself, or its replicates."""
    from raydr.record import replicates

    return [place for _, place in replicates(*_stored(out))]


def report(options: Any) -> int:
    from raydr.cluster import results
    from raydr.storage import Run

    results.write_report(Run(options.out))
    if options.figures:
        from raydr.report import export

        paths = export.write(Run(options.out), Path(options.figures))
        terminal.line("figures", f"{len(paths)} files in {options.figures}")
    if options.pictures:
        from raydr.report import showcase

        paths = showcase.write(Run(options.out), Path(options.pictures))
        terminal.line("pictures", ", ".join(map(str, paths)))
    return 0


def watch(options: Any) -> int:
    from raydr.report import server
    from raydr.storage import Run

    server.serve(Run(options.out), host=options.host, port=options.port, on_start=terminal.note)
    return 0


def status(options: Any) -> int:
    from raydr.plan import describe
    from raydr.report import status as synthetic

    recipe, target = _stored(options.out)
    terminal.header("status", recipe.name, options.out)
    plan = [[row.stage, row.work, row.done, row.cost] for row in describe(recipe, target)]
    terminal.table("Stages", ["stage", "work", "done", "cost"], plan)
    terminal.table("Synthetic images", list(synthetic.COLUMNS), synthetic.rows(target, recipe))
    terminal.table("Nodes that made them", list(synthetic.NODE_COLUMNS), synthetic.node_rows(target, recipe))
    return 0


def verify(options: Any) -> int:
    from raydr import shards

    places, problems, good = _places(options.out), [], 0
    for place in places:
        with terminal.bar("verify", 1, "shards") as bar:

            def progress(done: int, total: int, bar: terminal.Bar = bar) -> None:
                bar.to(done, total=total)

            found = shards.verify(place, progress=progress)
        problems += [(place, problem) for problem in found]
        good += len(shards.commits(place))
    for place, problem in problems:
        where = f"{place.url.rsplit('/', 1)[-1]}/" if len(places) > 1 else ""
        terminal.console.print(f"  {where}{problem.key}: {problem.kind} ({problem.detail})")
    terminal.line("verify", f"{good} shards committed, {len(problems)} problems")
    if problems:
        terminal.note(f"raydr repair {options.out}   drops what is damaged; then run the stage again")
    return 1 if problems else 0


def repair(options: Any) -> int:
    from raydr import shards
    from raydr.storage import Run

    count = 0
    places = _places(options.out)
    # What a live driver has written a moment ago looks like an orphan.
    with Run.locks("repair", Run(options.out), *places):
        for place in places:
            problems = shards.verify(place)
            for stage, table in {"ingest": "real", "synthesize": "synthetic", "sweep": "trials"}.items():
                # A stage that loses a shard is no longer finished; said first, or a kill here would hide the loss.
                if any(f"/{problem.key}".split("/_commits")[-1].startswith(f"/{table}/") for problem in problems):
                    place.delete(f"logs/stage-{stage}.json")
            count += len(shards.repair(place, problems))
    terminal.line("repair", f"{count} shards to make again: run the stage's command")
    return 0


def stop(options: Any) -> int:
    from raydr import stopping
    from raydr.locks import LOCK

    _, target = _stored(options.out)
    for place in dict.fromkeys([target, *_places(options.out)]):
        stopping.ask(place)
    holder = target.read(LOCK) if target.exists(LOCK) else b""
    if holder:
        terminal.line("stop", "asked: shards in flight are finished, nothing new is begun")
    else:
        terminal.line("stop", "no driver works on this run; the mark is cleared by the next one")
    return 0


def regenerate(options: Any) -> int:
    from raydr.cluster import regenerate as kernel
    from raydr.storage import Run

    verdict = kernel.run(Run(options.out), options.sample_id, options.to)
    terminal.line("regenerate", f"{options.to}: {verdict}")
    return 0 if verdict.startswith("equal") else 1


def base(options: Any) -> int:
    from raydr.diffusion.base import build
    from raydr.diffusion.cohorts import BaseConfig

    steps = {"vae_steps": options.vae_steps, "unet_steps": options.unet_steps}
    config = BaseConfig(**{name: value for name, value in steps.items() if value is not None})

    def on_event(event: dict[str, Any]) -> None:
        terminal.note(
            " ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{value}" for key, value in event.items())
        )

    build(config, Path(options.to), on_event=on_event)
    return 0


def audit(options: Any) -> int:
    from raydr.cluster import audit as stage

    leaks = 0
    for place in _places(options.out):
        found = stage.run(place)
        leaks += len(found.leaks)
        told = f"{len(found.leaks)} leaks, {len(found.warnings)} warnings"
        terminal.line("audit", f"{told}; {place.url}/report/audit.html")
    return 1 if options.strict and leaks else 0


def dashboards(options: Any) -> int:
    from importlib import resources

    folder = Path(options.to)
    boards = resources.files("raydr") / "assets" / "dashboards"
    names = sorted(board.name for board in boards.iterdir() if board.name.endswith(".json"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            (folder / name).write_bytes((boards / name).read_bytes())
    except OSError as error:
        raise UserError(f"The boards cannot be written to {folder} ({error.strerror}): name another --to") from None
    terminal.line("dashboards", f"{', '.join(names)} in {folder}")
    terminal.note("Grafana shows them in the folder Ray when this is the folder that Ray's own boards are in")
    return 0


def doctor(options: Any) -> int:
    if options.address and options.address.startswith(("http://", "https://")):
        from raydr.cluster import submit

        # A check is made anew each time it is asked for, unlike a stage.
        fields = ["--out", options.out] if options.out else []
        return submit.run("doctor", fields, options.address, resume=True)
    from raydr.cluster import doctor as stage

    return stage.show(stage.run(options.address, options.out))


def select(options: Any) -> int:
    from raydr import upkeep

    return upkeep.select(options, *_stored(options.out))


def bench(options: Any) -> int:
    from raydr.bench import command

    return command.run(options)


def gc(options: Any) -> int:
    from raydr import upkeep

    return upkeep.gc(options, *_stored(options.out))


def rescore(options: Any) -> int:
    from raydr import upkeep

    return upkeep.rescore(options, *_stored(options.out))


def quality(options: Any) -> int:
    from raydr import upkeep

    return upkeep.quality(options, *_stored(options.out))


def evaluate(options: Any) -> int:
    from raydr import grader_commands

    return grader_commands.evaluate(options, *_stored(options.out))


def export(options: Any) -> int:
    from raydr import grader_commands

    return grader_commands.export(options, *_stored(options.out))


COMMANDS: dict[str, Callable[[Any], int]] = {
    "report": report,
    "audit": audit,
    "watch": watch,
    "status": status,
    "verify": verify,
    "repair": repair,
    "stop": stop,
    "select": select,
    "gc": gc,
    "quality": quality,
    "rescore": rescore,
    "evaluate": evaluate,
    "export": export,
    "regenerate": regenerate,
    "base": base,
    "bench": bench,
    "dashboards": dashboards,
    "doctor": doctor,
}
