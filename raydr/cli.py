"""The command line: parse, dispatch, exit codes. A stage is imported inside the command that runs it.

Exit codes: 0 complete, 2 a mistake that the user can mend (one sentence), 1 anything else.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from raydr import terminal
from raydr.arguments import generator_import_parser, import_parser, parser
from raydr.errors import BudgetExhausted, Stopped, UserError

STAGES = ("ingest", "ensemble", "finetune", "synthesize", "sweep")
DEMO_OUT = "raydr-demo"


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
    except (BudgetExhausted, Stopped) as error:
        terminal.console.print(f"[bold red]raydr:[/bold red] {terminal.escape(str(error))}")
        if isinstance(error, Stopped):
            resume(argv)
        return 1
    except KeyboardInterrupt:
        terminal.console.print("\nStopped; what is committed is kept.")
        resume(argv)
        return 1


def resume(argv: Sequence[str]) -> None:
    """Say which command goes on from here."""
    import shlex

    terminal.note(f"go on with: raydr {terminal.escape(shlex.join(argv))}")


def dispatch(argv: list[str]) -> int:
    if argv[:2] == ["ensemble", "import"]:
        from raydr import grader_commands

        return grader_commands.import_member(import_parser().parse_args(argv[2:]))
    if argv[:2] == ["finetune", "import"]:
        from raydr import grader_commands

        return grader_commands.import_generator(generator_import_parser().parse_args(argv[2:]))
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
    if options.command in ("evaluate", "rescore"):
        options.shape, fields = shape_of(options.shape, fields)
    if fields:
        raise UserError(f"raydr {options.command} does not know {fields[0]!r}: see `raydr {options.command} --help`")
    from raydr.commands import COMMANDS

    return COMMANDS[options.command](options)


def stage(options: Any, fields: list[str], known: argparse.ArgumentParser) -> int:
    """`demo`, `run`, or one stage."""
    from raydr import recipes, shapes
    from raydr.storage import Run

    shape, fields = shape_of(options.shape, fields)
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
        shape_help(options.shape)
    recipe = override(recipe, options.command, fields, options.help)
    if not out:
        raise UserError("--out is missing: name the run directory, a path or a bucket")
    shape = shapes.with_options(shape, options.address, options.accelerator, options.exclude_node)
    stages = STAGES if options.command in ("run", "demo") else (options.command,)
    if "sweep" in stages:
        from raydr.plan import check

        check(recipe)
    if options.dry_run:
        dry_run(recipe, Run(out), stages, shape)
    if source and source != ["phantom"]:
        return add_source(recipe, Run(out), shape, options, source)
    if options.dry_run:
        return 0
    terminal.header(options.command, recipe.name, out)
    from raydr.cluster import pipeline

    pipeline.run(recipe, Run(out), shape, stages, report=options.command in ("run", "demo"))
    return 0


def shape_of(name: str, fields: list[str]) -> tuple[Any, list[str]]:
    """(the preset `name` with every `--shape.FIELD VALUE` applied, the other fields)."""
    from raydr import shapes

    mine: list[str] = []
    others: list[str] = []
    part = others
    for item in fields:
        if item.startswith("--"):
            part = mine if item.startswith("--shape.") else others
        part.append(item)
    shape = shapes.named(name)
    if not mine:
        return shape, others
    import tyro

    return tyro.cli(shapes.Machines, default=shapes.Machines(shape), args=mine, prog="raydr STAGE").shape, others


def shape_help(name: str) -> None:
    """Print every field of the shape with its value in the preset `name`."""
    import tyro

    from raydr import shapes

    with contextlib.suppress(SystemExit):
        tyro.cli(
            shapes.Machines, default=shapes.Machines(shapes.named(name)), args=["--help"], prog="raydr STAGE",
            description="Fields of the shape:",
        )  # fmt: skip


def submit(options: Any, fields: list[str], known: argparse.ArgumentParser) -> int:
    """Check a command's options here, so that a typo costs no upload; then send it."""
    there = argparse.Namespace()
    if options.job in ("run", "demo", *STAGES):
        there, changes = known.parse_known_args([options.job, *fields])
        _, changes = shape_of(there.shape, changes)
        while changes and changes[0][:1] != "-":  # ingest's SOURCE PATH
            changes.pop(0)
        if there.recipe:
            from raydr import recipes

            override(recipes.named(there.recipe), options.job, changes)
    from raydr.cluster import submit as jobs

    if options.job in jobs.ABOUT:
        there, others = known.parse_known_args([options.job, *fields])
        if "shape" in there:
            _, others = shape_of(there.shape, others)
        if others:
            raise UserError(f"raydr {options.job} does not know {others[0]!r}: see `raydr {options.job} --help`")
        fields.remove(there.out)
        fields = [there.out, *fields]  # first, where no option's value can be taken for it
    if "shape" in there and not any(item.split("=")[0] == "--shape" for item in fields):
        fields = [*fields, "--shape", "cluster"]

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
    options: dict[str, Any] = {"prog": f"raydr {command}", "description": f"Fields of the recipe {recipe.name}:"}
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


def dry_run(recipe: Any, target: Any, stages: Sequence[str], shape: Any) -> None:
    """Print the resolved recipe and what each stage would do; starts nothing."""
    import dataclasses
    import json

    from raydr.plan import describe

    terminal.console.print_json(json.dumps(dataclasses.asdict(recipe)))
    rows = [[row.stage, row.work, row.done, row.cost] for row in describe(recipe, target, shape) if row.stage in stages]
    terminal.table("Plan", ["stage", "work", "done", "cost"], rows)


# Hugging Face's libraries print bars for every file they read; a person wants ours only.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
