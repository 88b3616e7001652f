"""The command line: parse, dispatch, exit codes. A stage is imported inside the command that runs it.

Exit codes: 0 complete, 2 a mistake that the user can mend (one sentence), 1 anything else.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from raydr import terminal
from raydr.errors import BudgetExhausted, UserError

STAGES = ("ingest", "ensemble", "finetune", "synthesize", "sweep")
DEMO_OUT = "raydr-demo"

DESCRIPTION = "Balanced diabetic-retinopathy grading from imbalanced data, at cluster scale, on Ray."
EPILOG = """stages, in order:
  ingest      photographs -> OUT/real (Ray Data)
  ensemble    graders that score images -> OUT/graders
  finetune    diffusion LoRAs per grade -> OUT/generators (Ray Train)
  synthesize  class-conditioned images, scored -> OUT/synthetic (Ray Data)
  sweep       graders over arms and bands -> OUT/trials (Ray Tune)
  report      OUT/report/index.html

`raydr STAGE --help` lists the stage's fields with their defaults."""


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(
        "raydr", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    main.add_argument("--version", action="store_true", help="print the version and exit")
    commands = main.add_subparsers(dest="command", metavar="COMMAND")

    def command(name: str, help: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=help, description=help, allow_abbrev=False, add_help=False)

    for name, help in (
        ("demo", "the whole pipeline on built-in phantom data, under 10 minutes on 2 cores"),
        ("run", "all stages of a recipe, resuming what is there"),
        ("ingest", "photographs -> real"),
        ("ensemble", "train the graders that score images"),
        ("finetune", "fine-tune the diffusion generators"),
        ("synthesize", "generate and score images, to a count or a quota"),
        ("sweep", "train graders over arms, seeds, bands and ratios"),
    ):
        stage = command(name, help)
        stage.add_argument("-h", "--help", action="store_true", help="show this and every field with its default")
        stage.add_argument("--recipe", help="debug, demo, phantom or ddr_sd15 (default: the run's own)")
        stage.add_argument("--out", help="run directory: a path, s3://bucket/prefix or gs://bucket/prefix")
        stage.add_argument("--shape", default="laptop", help="laptop, workstation or cluster (default: laptop)")
        stage.add_argument("--address", help="address of a Ray cluster (default: the job's own, else this machine)")
        stage.add_argument("--dry-run", action="store_true", help="print the resolved recipe and the plan, then stop")
    for name, help in (
        ("report", "write OUT/report/index.html and results.json"),
        ("status", "what OUT holds: per stage, per generator and grade; needs no Ray"),
        ("verify", "re-hash every committed shard of OUT"),
        ("repair", "drop what `verify` finds damaged, so that the stage redoes only that"),
    ):
        plain = command(name, help)
        plain.add_argument("-h", "--help", action="help", help="show this and exit")
        plain.add_argument("out", metavar="OUT", help="run directory")
        if name == "report":
            plain.add_argument(
                "--figures", metavar="DIR", help="also write figures (SVG, PDF, PNG) and tables (CSV, LaTeX)"
            )
    live = command("watch", "serve the report of OUT live, on this machine only unless told otherwise")
    live.add_argument("-h", "--help", action="help", help="show this and exit")
    live.add_argument("out", metavar="OUT", help="run directory")
    live.add_argument("--host", default="127.0.0.1", help="address to bind (default: 127.0.0.1)")
    live.add_argument("--port", type=int, default=8266, help="port (default: 8266)")
    again = command("regenerate", "rebuild one sample from its row and compare the pixels")
    again.add_argument("-h", "--help", action="help", help="show this and exit")
    again.add_argument("out", metavar="OUT", help="run directory")
    again.add_argument("sample_id", metavar="SAMPLE_ID", help="as in the report: GENERATOR/gGRADE/INDEX")
    again.add_argument("--to", required=True, metavar="FILE", help="PNG to write")
    base = command("base", "build the small phantom base from nothing (about an hour on 2 cores; resumes)")
    base.add_argument("-h", "--help", action="help", help="show this and exit")
    base.add_argument("name", choices=["phantom"])
    base.add_argument("--to", required=True, metavar="FOLDER", help="where the diffusers folder goes")
    base.add_argument("--vae-steps", type=int, default=1200, help="optimisation steps of the VAE (default: 1200)")
    base.add_argument("--unet-steps", type=int, default=2000, help="optimisation steps of the UNet (default: 2000)")
    return main


def entry() -> None:
    """Console command."""
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.exit(code)


def main(argv: Sequence[str]) -> int:
    """Run one command; returns the exit code. The only place where a user's mistakes are caught."""
    try:
        return dispatch(list(argv))
    except UserError as error:
        terminal.console.print(f"[bold red]raydr:[/bold red] {terminal.escape(str(error))}")
        return 2
    except BudgetExhausted as error:
        terminal.console.print(f"[bold red]raydr:[/bold red] {terminal.escape(str(error))}")
        return 1
    except KeyboardInterrupt:
        terminal.console.print("\nStopped; what is committed is kept. The same command again goes on from here.")
        return 1


def dispatch(argv: list[str]) -> int:
    known = parser()
    options, fields = known.parse_known_args(argv)
    if options.version:
        from importlib import metadata

        print(metadata.version("raydr"))
        return 0
    if options.command is None:
        known.print_help()
        return 0
    if options.command in ("run", "demo", *STAGES):
        return stage(options, fields, known)
    if fields:
        raise UserError(f"raydr {options.command} does not know {fields[0]!r}: see `raydr {options.command} --help`")
    commands: dict[str, Callable[[Any], int]] = {
        "report": report,
        "watch": watch,
        "status": status,
        "verify": verify,
        "repair": repair,
        "regenerate": regenerate,
        "base": base,
    }
    return commands[options.command](options)


def stage(options: Any, fields: list[str], known: argparse.ArgumentParser) -> int:
    """`demo`, `run`, or one stage."""
    from raydr import recipes, shapes
    from raydr.storage import Run

    if options.command == "ingest" and fields and not fields[0].startswith("-"):
        raise UserError(
            f"raydr ingest takes no source here ({fields[0]!r}): phantom data is the recipe's; name fields with --"
        )
    out = options.out or (DEMO_OUT if options.command == "demo" else None)
    recipe = None
    if out and not options.recipe:
        from raydr.record import stored_recipe

        recipe = stored_recipe(Run(out))
    if recipe is None:
        name = options.recipe or "demo"
        if not options.recipe and options.command != "demo" and not options.help:
            raise UserError(
                f"{out or '--out'} holds no run yet: name a recipe with --recipe ({', '.join(recipes.RECIPES)})"
            )
        recipe = recipes.named(name)
    if options.help:
        print(next(iter(known._subparsers._group_actions)).choices[options.command].format_help())  # type: ignore
    recipe = override(recipe, options.command, fields, options.help)
    if not out:
        raise UserError("--out is missing: name the run directory, a path or a bucket")
    if options.shape not in shapes.SHAPES:
        raise UserError(f"There is no shape {options.shape!r}: choose one of {', '.join(shapes.SHAPES)}")
    shape = shapes.SHAPES[options.shape]
    if options.address:
        import dataclasses

        shape = dataclasses.replace(shape, address=options.address)
    stages = STAGES if options.command in ("run", "demo") else (options.command,)
    if options.dry_run:
        return dry_run(recipe, Run(out), stages)
    terminal.header(options.command, recipe.name, out)
    from raydr.cluster import pipeline

    pipeline.run(recipe, Run(out), shape, stages, report=options.command in ("run", "demo"))
    return 0


def override(recipe: Any, command: str, fields: list[str], show_help: bool = False) -> Any:
    """`recipe` with `--FIELD VALUE` applied; a stage's own command drops the stage's prefix."""
    if not fields and not show_help:
        return recipe
    import dataclasses

    import tyro

    arguments = ["--help"] if show_help else fields
    options: dict[str, Any] = {"prog": f"raydr {command}", "description": "Fields of the recipe:"}
    if command in ("run", "demo"):
        return tyro.cli(type(recipe), default=recipe, args=arguments, **options)
    # A stage's command also takes the run-wide fields that are part of every stage's identity.
    whole = {"--seed", "--fold", "--num-replicates"}
    mine: list[str] = []
    wide: list[str] = []
    for k, item in enumerate(arguments):
        (wide if item in whole or (k and arguments[k - 1] in whole) else mine).append(item)
    if wide:
        recipe = tyro.cli(type(recipe), default=recipe, args=wide, **options)
    changed = tyro.cli(type(getattr(recipe, command)), default=getattr(recipe, command), args=mine, **options)
    return dataclasses.replace(recipe, **{command: changed})


def dry_run(recipe: Any, target: Any, stages: Sequence[str]) -> int:
    """Print the resolved recipe and what each stage would do; starts nothing."""
    import dataclasses
    import json

    from raydr.plan import describe

    terminal.console.print_json(json.dumps(dataclasses.asdict(recipe)))
    rows = [[row.stage, row.work, row.done, row.cost] for row in describe(recipe, target) if row.stage in stages]
    terminal.table("Plan", ["stage", "work", "done", "cost"], rows)
    return 0


def report(options: Any) -> int:
    from raydr.cluster import pipeline
    from raydr.storage import Run

    pipeline.write_report(Run(options.out))
    if options.figures:
        from raydr.report import export

        paths = export.write(Run(options.out), Path(options.figures))
        terminal.line("figures", f"{len(paths)} files in {options.figures}")
    return 0


def watch(options: Any) -> int:
    from raydr.report import server
    from raydr.storage import Run

    server.serve(Run(options.out), host=options.host, port=options.port, on_start=terminal.note)
    return 0


def status(options: Any) -> int:
    from raydr.plan import describe
    from raydr.record import stored_recipe
    from raydr.report.status import rows
    from raydr.storage import Run

    target = Run(options.out)
    recipe = stored_recipe(target)
    if recipe is None:
        raise UserError(f"There is no run in {options.out}: name the --out of a run")
    terminal.header("status", recipe.name, options.out)
    plan = [[row.stage, row.work, row.done, row.cost] for row in describe(recipe, target)]
    terminal.table("Stages", ["stage", "work", "done", "cost"], plan)
    columns = ["generator", "grade", "committed", "in band", "acceptance", "s/image", "quarantined"]
    terminal.table("Synthetic images", columns, rows(target, recipe.num_replicates))
    return 0


def verify(options: Any) -> int:
    from raydr import shards
    from raydr.storage import Run

    target = Run(options.out)
    with terminal.bar("verify", 1, "shards") as bar:
        problems = shards.verify(target, progress=lambda done, total: bar.to(done, total=total))
    for problem in problems:
        terminal.console.print(f"  {problem.key}: {problem.kind} ({problem.detail})")
    good = len(shards.commits(target))
    terminal.line("verify", f"{good} shards committed, {len(problems)} problems")
    if problems:
        terminal.note(f"raydr repair {options.out}   drops what is damaged; then run the stage again")
    return 1 if problems else 0


def repair(options: Any) -> int:
    from raydr import shards
    from raydr.storage import Run

    target = Run(options.out)
    redo = shards.repair(target, shards.verify(target))
    for name in STAGES:  # a stage that lost a shard is no longer finished
        if any(
            key.startswith({"ingest": "real", "synthesize": "synthetic", "sweep": "trials"}.get(name, "?"))
            for key in redo
        ):
            target.delete(f"logs/stage-{name}.json")
    terminal.line("repair", f"{len(redo)} shards to make again: run the stage's command")
    return 0


def regenerate(options: Any) -> int:
    from raydr.cluster import regenerate as kernel
    from raydr.storage import Run

    verdict = kernel.run(Run(options.out), options.sample_id, options.to)
    terminal.line("regenerate", f"{options.to}: {verdict}")
    return 0 if verdict.startswith("equal") else 1


def base(options: Any) -> int:
    from raydr.diffusion.base import BaseConfig, build

    config = BaseConfig(vae_steps=options.vae_steps, unet_steps=options.unet_steps)

    def on_event(event: dict[str, Any]) -> None:
        terminal.note(
            " ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{value}" for key, value in event.items())
        )

    build(config, Path(options.to), on_event=on_event)
    return 0


# Hugging Face's libraries print bars for every file they read; a person wants ours only.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
