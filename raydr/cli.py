"""The command line: parse, dispatch, exit codes. A stage is imported inside the command that runs it.

Exit codes: 0 complete, 2 a mistake that the user can mend (one sentence), 1 anything else.
"""

import argparse
import os
import sys
from collections.abc import Sequence
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
        if name == "ingest":
            source_arguments(stage)
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
    look = command("audit", "duplicates, leaks, shortcuts and class balance of OUT/real -> report/audit.html; no Ray")
    look.add_argument("-h", "--help", action="help", help="show this and exit")
    look.add_argument("out", metavar="OUT", help="run directory")
    look.add_argument("--strict", action="store_true", help="exit 1 where a picture or a patient is in two splits")
    live = command("watch", "serve the report of OUT live, on this machine only unless told otherwise")
    live.add_argument("-h", "--help", action="help", help="show this and exit")
    live.add_argument("out", metavar="OUT", help="run directory")
    live.add_argument("--host", default="127.0.0.1", help="address to bind (default: 127.0.0.1)")
    live.add_argument("--port", type=int, default=8266, help="port (default: 8266)")
    job = command("submit", "send a command to a Ray cluster as a job, once, and follow it")
    job.usage = "raydr submit COMMAND [--address URL] [--resume] [the command's own options]"
    job.epilog = "Without --shape a stage takes --shape cluster. The same command again follows the job that runs."
    job.add_argument("-h", "--help", action="help", help="show this and exit")
    job.add_argument("job", metavar="COMMAND", help="run, ingest, ensemble, finetune, synthesize, sweep, report, ...")
    job.add_argument("--address", metavar="URL", help="Ray's Jobs API (default: RAY_ADDRESS, http://127.0.0.1:8265)")
    job.add_argument("--resume", action="store_true", help="send it again though its last job has ended")
    doctor = command("doctor", "what is wrong with this machine or a cluster, and what will be slow")
    doctor.add_argument("-h", "--help", action="help", help="show this and exit")
    doctor.add_argument("--address", help="auto, HOST:PORT, or the URL of the Jobs API (default: this machine)")
    doctor.add_argument("--out", help="also try the storage of this run: a path, s3://... or gs://...")
    again = command("regenerate", "rebuild one sample from its row and compare the pixels")
    again.add_argument("-h", "--help", action="help", help="show this and exit")
    again.add_argument("out", metavar="OUT", help="run directory")
    again.add_argument("sample_id", metavar="SAMPLE_ID", help="as in the report: GENERATOR/gGRADE/INDEX")
    again.add_argument("--to", required=True, metavar="FILE", help="PNG to write")
    base = command("base", "build the small phantom base from nothing (about an hour on 2 cores; resumes)")
    base.add_argument("-h", "--help", action="help", help="show this and exit")
    base.add_argument("name", choices=["phantom"])
    base.add_argument("--to", required=True, metavar="FOLDER", help="where the diffusers folder goes")
    base.add_argument("--vae-steps", type=int, help="optimisation steps of the VAE (default: as the shipped base)")
    base.add_argument("--unet-steps", type=int, help="optimisation steps of the UNet (default: as the shipped base)")
    return main


def source_arguments(ingest: argparse.ArgumentParser) -> None:
    """What `raydr ingest SOURCE PATH` takes beyond a stage's options."""
    ingest.usage = "raydr ingest [SOURCE PATH] [options] [--FIELD VALUE ...]"
    ingest.epilog = (
        "SOURCE is ddr, eyepacs, aptos, idrid, messidor2, deepdrid, fgadr, folder or csv, PATH its folder (or "
        "s3://, gs://); without them, the recipe's phantoms are drawn. Each call adds one data set to OUT/real."
    )
    ingest.add_argument(
        "--role", choices=["prior", "external"], help="prior: trains generators only; external: test only"
    )
    ingest.add_argument("--dataset", help="name of the data set in prompts and ids (default: the published one)")
    ingest.add_argument("--folds", metavar="LISTS", help="folder of published `name label` lists (default: drawn)")
    ingest.add_argument("--split-seed", type=int, help="seed of splits and folds (default: the recipe's seed)")
    ingest.add_argument("--num-folds", type=int, default=5, help="folds that are drawn (default: 5)")
    ingest.add_argument("--per-grade", type=int, default=33, help="photographs of each grade in a fold (default: 33)")
    ingest.add_argument(
        "--drop-duplicates", action="store_true", help="leave out what the audit would; never test rows"
    )


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
    if options.command == "submit":
        return submit(options, fields, known)
    if fields:
        raise UserError(f"raydr {options.command} does not know {fields[0]!r}: see `raydr {options.command} --help`")
    from raydr.commands import COMMANDS

    return COMMANDS[options.command](options)


def stage(options: Any, fields: list[str], known: argparse.ArgumentParser) -> int:
    """`demo`, `run`, or one stage."""
    from raydr import recipes, shapes
    from raydr.storage import Run

    # Sources stand first, before any --field: argparse could not tell a field's value from them.
    source = [fields.pop(0) for _ in range(2) if options.command == "ingest" and fields and fields[0][:1] != "-"]
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
    if "sweep" in stages:
        from raydr.plan import check

        check(recipe)
    if options.dry_run:
        dry_run(recipe, Run(out), stages)
    if source and source != ["phantom"]:
        return add_source(recipe, Run(out), shape, options, source)
    if options.dry_run:
        return 0
    terminal.header(options.command, recipe.name, out)
    from raydr.cluster import pipeline

    pipeline.run(recipe, Run(out), shape, stages, report=options.command in ("run", "demo"))
    return 0


def submit(options: Any, fields: list[str], known: argparse.ArgumentParser) -> int:
    """Check a stage's options here, so that a typo costs no upload; then send the command."""
    if options.job in ("run", "demo", *STAGES):
        there, changes = known.parse_known_args([options.job, *fields])
        while changes and changes[0][:1] != "-":  # ingest's SOURCE PATH
            changes.pop(0)
        if there.recipe:
            from raydr import recipes

            override(recipes.named(there.recipe), options.job, changes)
        if not any(item.split("=")[0] == "--shape" for item in fields):
            fields = [*fields, "--shape", "cluster"]
    from raydr.cluster import submit as jobs

    return jobs.run(options.job, fields, options.address, options.resume)


def add_source(recipe: Any, target: Any, shape: Any, options: Any, source: list[str]) -> int:
    """`raydr ingest SOURCE PATH`: photographs from a folder or bucket."""
    if len(source) < 2:
        raise UserError(f"raydr ingest {source[0]} lacks the PATH of its photographs: a folder, s3://... or gs://...")
    from raydr.cluster import pipeline
    from raydr.cluster.ingest_source import Request, describe

    names = ("role", "dataset", "folds", "split_seed", "num_folds", "per_grade", "drop_duplicates")
    reader, path = source
    request = Request(reader, path, **{name: getattr(options, name) for name in names})
    if options.dry_run:
        terminal.note(describe(recipe, target, request))
        return 0
    terminal.header(f"ingest {request.reader}", recipe.name, target.url)
    pipeline.add_source(recipe, target, request, shape)
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
    names = [item.split("=")[0].replace("_", "-") for item in arguments]
    for k, item in enumerate(arguments):
        is_value = k > 0 and names[k - 1] in whole and "=" not in arguments[k - 1]
        (wide if names[k] in whole or is_value else mine).append(item)
    if wide:
        recipe = tyro.cli(type(recipe), default=recipe, args=wide, **options)
    changed = tyro.cli(type(getattr(recipe, command)), default=getattr(recipe, command), args=mine, **options)
    return dataclasses.replace(recipe, **{command: changed})


def dry_run(recipe: Any, target: Any, stages: Sequence[str]) -> None:
    """Print the resolved recipe and what each stage would do; starts nothing."""
    import dataclasses
    import json

    from raydr.plan import describe

    terminal.console.print_json(json.dumps(dataclasses.asdict(recipe)))
    rows = [[row.stage, row.work, row.done, row.cost] for row in describe(recipe, target) if row.stage in stages]
    terminal.table("Plan", ["stage", "work", "done", "cost"], rows)


# Hugging Face's libraries print bars for every file they read; a person wants ours only.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
