"""What the commands about trained graders do, and what takes in graders and generators from elsewhere."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydr import terminal
from raydr.errors import MissingInput, UserError

if TYPE_CHECKING:
    from raydr.config import Recipe
    from raydr.storage import Run


def evaluate(options: Any, recipe: "Recipe", target: "Run") -> int:
    """Graders of the run on other data sets; prints one table a set."""
    from raydr import shapes
    from raydr.cluster import evaluate as stage

    shape = shapes.with_options(options.shape, options.address, None, None)
    with target.lock("evaluate"):
        found = stage.run(recipe, target, options.on, options.arm or (), shape)
    for name, arms in found.items():
        rows = []
        for arm, row in arms.items():
            over = row["over_baseline"]
            told = "–"
            if over:
                points = [100 * over[key] for key in ("difference", "low", "high")]
                told = f"{points[0]:+.1f} ({points[1]:+.1f} to {points[2]:+.1f})"
            rows.append(
                [arm, str(row["num_graders"]), _cell(row["balanced_accuracy"]), _cell(row["referable_auc"]), told]
            )
        columns = ["arm", "graders", "balanced acc., %", "referable AUC, %", "over oversampling"]
        terminal.table(f"{name}: {next(iter(arms.values()))['num_images']} photographs", columns, rows)
    terminal.line("evaluate", f"{target.url}/report/external.json; `raydr report` shows it")
    return 0


def _cell(value: dict[str, float | None]) -> str:
    if value["mean"] is None:
        return "–"
    return f"{100 * value['mean']:.1f}" + (f" ± {100 * value['std']:.1f}" if value["std"] is not None else "")


def export(options: Any, recipe: "Recipe", target: "Run") -> int:
    """One grader with its model card, for use without this run."""
    from raydr.cluster.session import node_cache
    from raydr.grading.evaluate import export_grader

    to = Path(options.to)
    if to.exists() and any(to.iterdir()):
        raise UserError(f"{to} is not empty: name a new folder for the exported grader")
    prefix = found_grader(recipe, target, options.grader)
    folder = target.folder(prefix, node_cache(target))
    phantom = recipe.ingest.source == "phantom"
    title = options.title or f"raydr grader {options.grader}"
    notes = options.notes or f"Recipe `{recipe.name}` of raydr."
    export_grader(folder, to, title, notes, phantom)
    terminal.line("export", f"{to}: model.safetensors, grader.json, README.md")
    return 0


def found_grader(recipe: "Recipe", target: "Run", name: str) -> str:
    """Key of the grader called `name`: an arm (of its kept graders the best on validation), a trial id or a member."""
    from raydr import schema, shards
    from raydr.record import replicates

    kept: list[tuple[float, str]] = []
    for _, place in replicates(recipe, target):
        inside = place.url.removeprefix(target.url).strip("/")
        prefix = f"{inside}/" if inside else ""
        for key, _ in [item for item in place.list("graders") if item[0].endswith(f"/{name}/_done.json")]:
            return prefix + key.removesuffix("/_done.json")
        if place.exists(f"trials/graders/{name}/_done.json"):
            return f"{prefix}trials/graders/{name}"
        columns = ["trial_id", "arm", "validation_balanced_accuracy"]
        rows = shards.read(place, "trials/results", schema.TRIALS, columns, required=False).to_pylist()
        kept += [
            (row["validation_balanced_accuracy"], f"{prefix}trials/graders/{row['trial_id']}")
            for row in rows
            if row["arm"] == name and place.uploaded(f"trials/graders/{row['trial_id']}")
        ]
    if kept:
        return max(kept)[1]
    raise MissingInput(
        f"{target.url} keeps no grader {name!r}: name an arm, a trial id or a member of OUT/graders; "
        f"`raydr sweep --out {target.url} --keep-weights ARM` keeps an arm's"
    )


def import_member(options: Any) -> int:
    """A published LANet checkpoint as a folder of an ensemble member."""
    from raydr.grading.checkpoints import import_member as read

    name = options.name or f"{options.backbone}-{Path(options.file).stem}"
    if not all(letter.isalnum() or letter in "_.-" for letter in name):
        raise UserError(f"--name {name!r}: use letters, digits and _.-")
    folder = Path(options.to) / name
    if folder.exists():
        raise UserError(f"{folder} is there already: name another with --name")
    report = read(options.file, options.backbone, folder, options.px)
    terminal.line("import", f"{folder}: {report}")
    terminal.note(
        "nothing shows which photographs an imported grader has seen: strict runs refuse it, and so does any check of "
        "leaks; to compare with the paper alone, `raydr rescore OUT --ensemble DIR --paper-mode`"
    )
    return 0


def import_generator(options: Any) -> int:
    """A LoRA, a UNet or a pipeline from elsewhere as a generator of a run; prints the command that uses it."""
    import json
    import tempfile

    from raydr import lineage
    from raydr.cluster import finetune
    from raydr.diffusion import imported, model
    from raydr.prompts import instance_prompt
    from raydr.record import stored_recipe
    from raydr.storage import Run

    target = Run(options.out)
    recipe = stored_recipe(target)
    if recipe is None:
        raise MissingInput(f"There is no run in {target.url}: start one with `raydr ingest --recipe NAME --out OUT`")
    config = recipe.finetune
    with target.lock("finetune import"), tempfile.TemporaryDirectory() as name:
        dataset = finetune.dataset_of(recipe, target)
        adapter, content = imported.take(options.source, config.base, config.revision, Path(name))
        made = lineage.imported(recipe, options.grade, content)
        record = {
            "generator_id": made.generator_id,
            "kind": made.kind,
            "grades": made.grades,
            "seed": made.seed,
            "branch_id": made.branch_id,
            "base": config.base,
            "base_fingerprint": model.base_fingerprint(config.base, config.revision),
            "ensemble_id": None,
            "dataset": None,
            "prompts": {str(options.grade): options.prompt or instance_prompt(dataset, options.grade)},
            "fold": None,
            "px": config.px,
            "adapter": adapter,
            "provenance": "imported",
            "source": options.source,
            # Nobody knows: photographs of the test set may be among them.
            "num_photographs": None,
            "photographs_seen": None,
        }
        key = f"generators/{made.generator_id}"
        if not target.uploaded(key):
            (Path(name) / "generator.json").write_text(json.dumps(record, indent=1))
            target.upload(Path(name), key)
    terminal.line("import", f"{target.url}/{key}")
    terminal.note(
        "nothing shows which photographs it has seen: its images enter no arm of a sweep; make some with "
        f"`raydr synthesize --out {target.url} --imported {made.generator_id}`"
    )
    return 0
