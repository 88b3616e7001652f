"""The stages in order: what `raydr run`, `raydr demo` and every single stage command go through.

    from raydr.cluster import pipeline
    pipeline.run(recipe, "out")

A finished stage leaves a record with the fingerprint of its configuration and of the stages before it;
the same command again skips it without starting Ray. Anything unfinished goes on where it was cut.
"""

import contextlib
import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from raydr import lineage, prices, spending, stopping, terminal
from raydr.cluster.provenance import revision, versions
from raydr.config import Recipe
from raydr.errors import DamagedData, IdentityMismatch, MissingInput, Stopped
from raydr.identity import as_dict, fingerprint
from raydr.record import replicates
from raydr.shapes import Shape
from raydr.storage import Run

if TYPE_CHECKING:
    from raydr.cluster.ingest_source import Request
    from raydr.cluster.telemetry import Usage

STAGES = ("ingest", "ensemble", "finetune", "synthesize", "sweep")


def identity(recipe: Recipe, stage: str) -> str:
    """Fingerprint of a stage's whole configuration and of the identity of the stages before it."""
    before = [lineage.inside(recipe, name) for name in STAGES[: STAGES.index(stage)]]
    own = as_dict(getattr(recipe, stage))
    return fingerprint(stage, own, before, recipe.seed, recipe.replicate, recipe.fold)


def open_run(recipe: Recipe, target: Run) -> None:
    """Write recipe.json, or check that the run that is there is this recipe's.

    Raises IdentityMismatch naming the field and both values where a field that changes pixels or
    weights of a stage already begun differs.
    """
    stored = target.read_json("recipe.json") if target.exists("recipe.json") else None
    if stored:
        begun = [stage for stage in STAGES if stage in stored.get("begun", [])]
        # Photographs are the same however often the chain repeats on them; a cohort of phantoms is one replicate's.
        counts = [] if begun == ["ingest"] and recipe.ingest.source != "phantom" else ["num_replicates"]
        for name in ("seed", "fold", *counts, "replicate"):
            if begun and stored["recipe"][name] != getattr(recipe, name):
                raise _mismatch(target, name, stored["recipe"][name], getattr(recipe, name))
        for stage in begun:
            if stage == "sweep":  # a sweep's trials carry their own identity: it may grow any way
                continue
            # A field at its default may be missing on either side: `as_dict` drops what came later.
            later = fingerprintable(lineage.later(recipe, stage))
            before = later | stored["recipe"][stage]
            after = later | fingerprintable(lineage.inside(recipe, stage))
            for field, value in after.items():
                if fingerprint(before.get(field)) != fingerprint(value):
                    raise _mismatch(target, f"{stage}.{field}", before.get(field), value)
        if stored["versions"] != versions():
            changed = [name for name, old in stored["versions"].items() if versions().get(name) != old]
            terminal.note(f"versions changed since this run began: {', '.join(changed)}")
    record = {
        "recipe": fingerprintable(as_dict(recipe)),
        "versions": stored["versions"] if stored else versions(),
        "revision": stored["revision"] if stored else revision(),
        "fingerprints": {stage: identity(recipe, stage) for stage in STAGES},
        "begun": stored.get("begun", []) if stored else [],
    }
    if record != stored:
        target.replace_json("recipe.json", record)


def fingerprintable(value: Any) -> Any:
    """Tuples as lists, as JSON gives them back."""
    if isinstance(value, dict):
        return {key: fingerprintable(item) for key, item in value.items()}
    return [fingerprintable(item) for item in value] if isinstance(value, list | tuple) else value


def _mismatch(target: Run, field: str, before: Any, after: Any) -> IdentityMismatch:
    return IdentityMismatch(
        f"{target.url} was made with {field} = {before!r} and now {after!r} is asked for: use another --out, "
        "or the old value"
    )


def begin(target: Run, stage: str) -> None:
    record = target.read_json("recipe.json")
    if stage not in record["begun"]:
        record["begun"].append(stage)
        target.replace_json("recipe.json", record)


def finished(recipe: Recipe, target: Run, stage: str) -> dict[str, Any] | None:
    """The record that a stage left when it ended with this very configuration, or None."""
    key = f"logs/stage-{stage}.json"
    record = target.read_json(key) if target.exists(key) else None
    return record if record and record["identity"] == identity(recipe, stage) else None


def run(
    recipe: Recipe, out: str | Run, shape: Shape | None = None, stages: Sequence[str] = STAGES, report: bool = True
) -> dict[str, Any]:
    """Run `stages` for every replicate and write the report; returns {stage: summary} of the last replicate.

    Raises UserError for what the user can mend; a second driver on the same output is refused.
    """
    from raydr.cluster import folds, preflight, session

    shape = shape or Shape()
    target = out if isinstance(out, Run) else Run(out)
    summaries: dict[str, Any] = {}
    lost = 0
    with target.lock(" ".join(stages)):
        open_run(recipe, target)
        parts = replicates(recipe, target)
        stopping.clear(target, *(place for _, place in parts))
        for part, place in parts if len(parts) > 1 else ():
            open_run(part, place)
        folds.share(recipe, target, parts)
        todo = [item for item in parts if any(not finished(item[0], item[1], stage) for stage in stages)]
        for part, place in parts:
            if len(parts) > 1:
                terminal.note(folds.words(part, len(parts)))
            if (part, place) not in todo:
                for stage in stages:
                    summaries[stage] = finished(part, place, stage)
                    terminal.line(stage, "finished before")
                continue
            # What is missing is said before Ray starts: ten seconds sooner, with nothing to clean up.
            first = next(stage for stage in stages if not finished(part, place, stage))
            importlib.import_module(f"raydr.cluster.{first}").ready(part, place)
            with session.session(shape):
                preflight.check(part, place, shape, [stage for stage in stages if not finished(part, place, stage)])
                for stage in stages:
                    stopping.obey(target, stage)
                    summaries[stage] = _stage(part, place, shape, stage)
                    lost += len(summaries[stage]["summary"].get("failed", ()))
        if report:
            summaries["report"] = write_report(target)
    if lost:  # the other trials and the report are there: that is still no success
        raise Stopped(f"{lost} trials failed (reasons: trials/failed.json); the others are done")
    return summaries


def add_source(recipe: Recipe, out: str | Run, request: "Request", shape: Shape | None = None) -> dict[str, Any]:
    """`raydr ingest READER PATH`: add one source to `real`; returns the stage's record."""
    from raydr.cluster import ingest_source, session, telemetry

    target = out if isinstance(out, Run) else Run(out)
    with target.lock("ingest"):
        open_run(recipe, target)
        listing = ingest_source.look(recipe, target, request)
        begin(target, "ingest")
        # A source that is all there needs no Ray: ten seconds saved.
        whole = ingest_source.is_whole(target, listing)
        started = contextlib.nullcontext() if whole else session.session(shape or Shape())
        with started, telemetry.measured("ingest") as usage:
            summary = ingest_source.add_source(recipe, target, listing)
        return _keep_record(recipe, target, "ingest", summary, usage, complete=summary["complete"])


def _stage(recipe: Recipe, target: Run, shape: Shape, stage: str) -> dict[str, Any]:
    """One stage: skipped when finished, else run, measured, recorded and summed up in a line."""
    from raydr.cluster import preflight, telemetry

    record = finished(recipe, target, stage)
    if record:
        terminal.line(stage, "finished before")
        return record
    module = importlib.import_module(f"raydr.cluster.{stage}")
    # Synthesis has a budget, so its quota actor counts, and knows the images.
    keep = None if stage == "synthesize" else spending.keeper(target, stage)
    with telemetry.measured(stage, table=prices.load(shape.prices), keep=keep) as usage:
        preflight.begin(recipe, target, shape, stage)  # before the mark that fixes what a smaller batch would change
        begin(target, stage)
        summary = module.run(recipe, target) if stage == "ingest" else module.run(recipe, target, shape)
    complete = not (summary.get("failed") or summary.get("partial"))
    return _keep_record(recipe, target, stage, summary, usage, complete)


def _keep_record(
    recipe: Recipe, target: Run, stage: str, summary: dict[str, Any], usage: "Usage", complete: bool
) -> dict[str, Any]:
    """Say in a line what a stage did, add up what it cost, and, where it is complete, leave its record."""
    record = {
        "identity": identity(recipe, stage),
        "summary": summary,
        "seconds": usage.seconds,
        "peak_bytes": usage.peak_bytes,
    }
    spent = target.read_json("logs/stages.json") if target.exists("logs/stages.json") else {}
    earlier = spent.get(stage, {"seconds": 0.0, "peak_bytes": 0})
    spent[stage] = {
        "seconds": earlier["seconds"] + usage.seconds,
        "peak_bytes": max(earlier["peak_bytes"], usage.peak_bytes),
    }
    target.replace_json("logs/stages.json", spent)
    terminal.line(stage, describe(stage, summary), usage.seconds)
    if complete:
        target.replace_json(f"logs/stage-{stage}.json", record)
    return record


def describe(stage: str, summary: dict[str, Any]) -> str:
    """The line of result of a stage."""
    if stage == "ingest" and "source" in summary:
        source = summary["source"]
        told = f"{source['dataset']}: {source['kept']} of {source['listed']} entries, {source['added']} added now"
        return f"{told}; {summary['photographs']} photographs in all"
    if stage == "ingest":
        train = summary["counts"].get("train", [])
        return f"{summary['photographs']} photographs, training counts by grade {'/'.join(map(str, train))}"
    if stage == "ensemble":
        scores = [member["balanced_accuracy"] for member in summary["trained"] if "balanced_accuracy" in member]
        told = f", held-out balanced accuracy {', '.join(f'{score:.2f}' for score in scores)}" if scores else ""
        whole = summary.get("ensemble") or {}
        told += f", {whole['balanced_accuracy']:.2f} together on validation" if "balanced_accuracy" in whole else ""
        return f"{summary['members']} graders{told}"
    if stage == "finetune":
        names = ", ".join(name.rsplit("-", 1)[0] for name in summary["generators"])
        cost = summary.get("ecc_cost")
        told = f", a refresh of ECC took {cost:.1f}x the training between two" if cost else ""
        return f"{len(summary['generators'])} generators ({names}){told}"
    if stage == "synthesize":
        made = summary["images"]
        inside = sum(row["accepted"] for row in summary["targets"])
        return f"{made} images, {inside} in the band ({inside / max(1, made):.0%})"
    return f"{summary['trials']} trials ({summary['run']} run now)"


def write_report(target: Run) -> str:
    """Write report/index.html and results.json, print the table of arms; returns the page's address."""
    from raydr.cluster import telemetry
    from raydr.report import page

    if not target.exists("recipe.json"):
        raise MissingInput(f"There is no run in {target.url}: name the --out of a run, or start one with `raydr run`")
    record = target.read_json("recipe.json")
    # A run of an older raydr can still be reported on: its recipe is shown, not restored.
    if not isinstance(record, dict) or "num_replicates" not in (record.get("recipe") or {}):
        raise DamagedData(f"recipe.json in {target.url} is no recipe of raydr: restore it, or use another --out")
    with telemetry.measured() as usage:
        where = page.write(target)
    spent = target.read_json("logs/stages.json") if target.exists("logs/stages.json") else {}
    spent["report"] = {"seconds": usage.seconds, "peak_bytes": usage.peak_bytes}
    target.replace_json("logs/stages.json", spent)
    show(target.read_json("report/results.json"))
    terminal.line("report", where, usage.seconds)
    return where


def show(results: dict[str, Any]) -> None:
    """Print the table of arms and the answer, as results.json has them."""
    rows = []
    wide = terminal.console.width >= 100  # in 80 columns the recalls are means alone: cut cells would say nothing
    for row in results["table"]:
        cells = [_cell(row["metrics"][key]) for key in ("balanced_accuracy", "accuracy_at_ddr_priors")]
        rows.append([row["name"], *cells, *(_cell(value, wide) for value in row["recall"])])
    if rows:
        title = "Arms on the test set, % (mean ± standard deviation over seeds)"
        if results["phantom"]:
            title += "\nPhantom data: tests the software, not the clinic"
        columns = ["arm", "bal. acc.", "DDR acc.", *(f"{'recall' if wide else 'rec.'} {grade}" for grade in range(5))]
        terminal.table(title, columns, rows)
    for sentence in [*results["answer"]["sentences"], *results["answer"]["caveats"]]:
        terminal.note(sentence)


def _cell(value: Any, spread: bool = True) -> str:
    if isinstance(value, dict):
        mean, std = value.get("mean"), value.get("std")
        if mean is None:
            return "–"
        return f"{100 * mean:.1f} ± {100 * std:.1f}" if spread and std is not None else f"{100 * mean:.1f}"
    return "–" if value is None else f"{100 * value:.1f}"
