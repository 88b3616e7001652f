"""The stages in order: what `raydr run`, `raydr demo` and every single stage command go through.

    from raydr.cluster import pipeline
    pipeline.run(recipe, "out")

A finished stage leaves a record with the fingerprint of its configuration and of the stages before it;
the same command again skips it without starting Ray. Anything unfinished goes on where it was cut.
"""

import contextlib
import importlib
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from raydr import lineage, prices, shards, spending, stopping, terminal
from raydr.cluster import results, source_record
from raydr.cluster.provenance import revision, versions
from raydr.config import Recipe
from raydr.errors import IdentityMismatch, Stopped
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
        known = _begun(target, stored)
        begun = [stage for stage in STAGES if stage in known]
        # Photographs are the same however often the chain repeats on them; a cohort of phantoms is one replicate's.
        counts = [] if begun == ["ingest"] and recipe.ingest.source != "phantom" else ["num_replicates"]
        outside = set(stored.get("begun", [])) <= {"ingest"}  # all else lies in the replicates
        if outside and 1 < stored["recipe"]["num_replicates"] <= recipe.num_replicates:
            counts = []  # more of them leave those that are there as they are
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


def _begun(target: Run, stored: dict[str, Any]) -> set[str]:
    """The stages that a run or one of its replicates has begun."""
    found = set(stored.get("begun", []))
    count = stored["recipe"]["num_replicates"]
    for part in (target.child(f"replicate-{k}") for k in range(count if count > 1 else 0)):
        found |= set(part.read_json("recipe.json").get("begun", [])) if part.exists("recipe.json") else set()
    return found


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
    if record is None or record["identity"] != identity(recipe, stage):
        return None
    # A source that was added since is to be learnt from. (Records of older versions do not say what they saw.)
    seen = record.get("photographs")
    return record if seen is None or seen == _photographs(target, stage) else None


def _photographs(target: Run, stage: str) -> str | None:
    """Identity of the photographs that a stage learns from, by the manifest; None for the one that brings them."""
    if stage == "ingest":
        return None
    whole = shards.completed(target, "real")
    external = {key for source in source_record.sources(target) if source.role == "external" for key in source.keys}
    return fingerprint(sorted(item for item in (whole or {"shards": {}})["shards"].items() if item[0] not in external))


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
    parts = replicates(recipe, target)
    places = [place for _, place in parts]
    with Run.locks(" ".join(stages), target, *places) as locks, _leaving(target, locks):
        open_run(recipe, target)
        stopping.clear(target, *places)
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
            summaries["report"] = results.write_report(target)
    if lost:  # the other trials and the report are there: that is still no success
        raise Stopped(f"{lost} trials failed (reasons: trials/failed.json); the others are done")
    return summaries


@contextlib.contextmanager
def _leaving(target: Run, lost: Sequence[threading.Event]) -> Iterator[None]:
    """Interrupts the main thread, as Ctrl-C does, once one of the locks is lost to another driver.

    This one slept, or had no network, for a minute. Rows would stay right, and be paid for twice.
    """
    done = threading.Event()

    def watch() -> None:
        while not done.wait(1.0):
            if any(event.is_set() for event in lost):
                terminal.note(f"another driver has taken {target.url} over: this one ends")
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                return

    thread = threading.Thread(target=watch, name="raydr-lock-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


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
        "photographs": _photographs(target, stage),
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
    terminal.line(stage, results.describe(stage, summary), usage.seconds)
    if complete:
        target.replace_json(f"logs/stage-{stage}.json", record)
    return record
