"""Generators -> `synthetic`: tickets -> generate and score -> encode and commit, one streaming execution.

    from raydr.cluster import synthesize
    synthesize.run(recipe, "out")

Every sample is written, whatever its score; the band is chosen afterwards by `selection`.
"""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import ray

from raydr import lineage, prices, shards, spending
from raydr.cluster import ensemble, finetune, placement, session, telemetry
from raydr.cluster.generator import Diffusion, Generate, Judge
from raydr.cluster.overseer import Overseer
from raydr.cluster.packing import SINK_CPUS
from raydr.cluster.quota import Quota, Target
from raydr.cluster.scorer import Score
from raydr.cluster.sink import commit_shard
from raydr.cluster.tickets import tickets
from raydr.config import Recipe
from raydr.errors import BudgetExhausted, MissingInput, Stopped, UserError
from raydr.identity import fingerprint
from raydr.leases import BROKEN, BUDGET, TABLE
from raydr.shapes import Shape
from raydr.storage import Run


def targets(recipe: Recipe, generators: list[lineage.Generator]) -> list[Target]:
    config = recipe.synthesize
    least = math.ceil(config.count / config.shard_size)
    most = max(least, config.max_images // config.shard_size) if config.accepted else least
    return [
        Target(g.generator_id, grade, least, config.accepted, most, config.band)
        for g in generators
        for grade in g.grades
    ]


def versions() -> str:
    import diffusers
    import torch
    import transformers

    return f"torch {torch.__version__}, diffusers {diffusers.__version__}, transformers {transformers.__version__}"


def generators(recipe: Recipe, target: Run) -> tuple[list[lineage.Generator], list[str]]:
    """(the generators that make images, ids of the recipe's own that are left out as they are not trained yet)."""
    found, names = finetune.planned(recipe, target), recipe.synthesize.imported
    missing = [one for one in found if names and not target.uploaded(f"generators/{one.generator_id}")]
    wanted = [one for one in found if one not in missing]
    for name in names:
        record = target.read_json(f"generators/{name}/generator.json")
        wanted.append(lineage.Generator(name, record["kind"], tuple(record["grades"]), record["seed"], name))
    return wanted, [one.generator_id for one in missing]


def ready(recipe: Recipe, target: Run) -> None:
    """MissingInput where photographs, generators or the ensemble are not there."""
    if not shards.completed(target, "real"):
        raise MissingInput(f"{target.url} has no complete `real` table: run `raydr ingest` first")
    for name in recipe.synthesize.imported:
        if not target.uploaded(f"generators/{name}"):
            raise MissingInput(f"{target.url} has no imported generator {name}: run `raydr finetune import` first")
    for generator in [] if recipe.synthesize.imported else finetune.planned(recipe, target):
        if not target.uploaded(f"generators/{generator.generator_id}"):
            raise MissingInput(f"{target.url} lacks the generator {generator.generator_id}: run `raydr finetune` first")
    ensemble.require(recipe, target)


@dataclass(frozen=True)
class Work:
    """All that one execution needs to know: `maker(**arguments)` makes the rows (see generator.Maker)."""

    recipe: Recipe
    target: Run
    wanted: list[Target]
    ensemble_id: str
    maker: type
    arguments: dict[str, Any]
    # `scorer(**scoring)` says what was made, in a pool of its own (see scorer.Scorer); None where the maker does.
    scorer: type | None = None
    scoring: dict[str, Any] = field(default_factory=dict)


def run(recipe: Recipe, out: str | Run, shape: Shape | None = None) -> dict[str, Any]:
    """Generate until every target is met; returns counts and acceptance per generator and grade. Resumes.

    Raises BudgetExhausted when a budget ended before a quota was met or too much was quarantined, Stopped when
    `raydr stop` or Ctrl-C ended it.
    """
    shape = shape or Shape()
    target = out if isinstance(out, Run) else Run(out)
    ready(recipe, target)
    ensemble_id = ensemble.identity(recipe, target)
    makers, left_out = generators(recipe, target)
    wanted = targets(recipe, makers)
    arguments = {
        "url": target.url,
        "recipe": recipe,
        "ensemble_id": ensemble_id,
        # Scorers take as many threads: other numbers of them sum in another order.
        "num_threads": max(1, session.cpus() // shape.generators),
    }
    making = arguments | {"gpu": shape.generator_gpus > 0, "judges": not shape.scorers}
    work = Work(recipe, target, wanted, ensemble_id, Diffusion, making)
    if shape.scorers:
        work = replace(work, scorer=Judge, scoring=arguments | {"gpu": shape.scorer_gpus > 0})
    return drive(work, shape) | ({"partial": left_out} if left_out else {})


def drive(work: Work, shape: Shape) -> dict[str, Any]:
    """`run` for any maker: refuse what cannot work, stream, and say what came of it."""
    config, target = work.recipe.synthesize, work.target
    done = shards.commits(target, TABLE)
    for item in work.wanted:
        identity = lineage.synthetic_fingerprint(work.recipe, item.generator_id, work.ensemble_id)
        shards.pending([item.key(number) for number in range(item.least)], identity, done)  # refuses another's shards
    table = prices.load(shape.prices)
    _require_measurable(work.recipe, shape, table)
    name = f"quota-{fingerprint(target.url, time.time())}"
    budget = spending.Budget(config.max_gpu_seconds, config.max_cost, spending.total(target, "synthesize"))
    quota = Quota.options(name=name, namespace=session.NAMESPACE, **session.here()).remote(  # type: ignore[attr-defined]
        target.url, work.wanted, name, config.max_starts, table, budget
    )
    try:
        with _users_mistakes():
            state = ray.get(quota.state.remote())
            if not state["met"]:
                _stream(work, shape, name, quota)
                ray.get(quota.keep.remote())
                state = ray.get(quota.state.remote())
    finally:
        ray.kill(quota)
    return verdict(work, state)


@contextlib.contextmanager
def _users_mistakes() -> Iterator[None]:
    """What a user can mend (a full disk, say) is one sentence here, as it was on its node or in the quota."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise


def _require_measurable(recipe: Recipe, shape: Shape, table: prices.Prices) -> None:
    """UserError for a budget that could never end, because what it counts is not there."""
    config, nodes = recipe.synthesize, spending.nodes_of(ray.nodes(), table)
    if config.max_cost and any(node.hourly is None for node in nodes):
        raise UserError(
            "synthesize.max_cost needs the price of every node, and some have none: put them into [nodes] of a price "
            "table (default = 0.25 prices every other node) and name it with --shape.prices FILE"
        )
    if config.max_gpu_seconds and not shape.generator_gpus:
        raise UserError(
            f"synthesize.max_gpu_seconds counts GPUs, and the shape {shape.name} uses none: use max_cost or max_images"
        )


def verdict(work: Work, state: dict[str, Any]) -> dict[str, Any]:
    """The stage's summary, or the error that says why it is not complete."""
    config, target = work.recipe.synthesize, work.target
    rows = {key: record.rows for key, record in shards.commits(target, TABLE).items()}
    names = {f"{item.generator_id}/g{item.grade}" for item in work.wanted}
    made = sum(count for key, count in rows.items() if key.removeprefix(f"{TABLE}/").rpartition("-")[0] in names)
    notes = [note for note in shards.quarantined(target, TABLE) if _is_of(note["key"], names)]
    lost = sum(config.shard_size if note["key"].endswith(".parquet") else 1 for note in notes)
    short = [
        f"{row['generator_id']} grade {row['grade']} has {row['accepted']} of {config.accepted}"
        if config.accepted
        else f"{row['generator_id']} grade {row['grade']} has {row['shards']} of {item.least} shards"
        for row, item in zip(state["targets"], work.wanted, strict=True)
        if not row["met"]
    ]
    kind, _, why = (state["closed"] or "").partition(": ")
    if short and kind in (BUDGET, BROKEN):
        raise BudgetExhausted(f"{why} before all was made: {'; '.join(short)}")
    if short and state["closed"]:
        raise Stopped(f"Stopped ({state['closed']}) with {made} images committed; {'; '.join(short)}")
    if state["exhausted"]:
        raise BudgetExhausted(
            f"synthesize.max_images ended before the quota of {config.accepted} accepted images was met: "
            f"{'; '.join(short)}: raise it, widen the band, or train the generator further"
        )
    if short:
        raise Stopped(f"The stream ended before all was made: {'; '.join(short)}; the same command goes on")
    if lost > config.max_quarantine * (made + lost):
        raise BudgetExhausted(
            f"{lost} of {made + lost} images are in quarantine, first {notes[0]['key']} ({notes[0]['reason']}: "
            f"{notes[0]['detail']}); raise synthesize.max_quarantine {config.max_quarantine:g} to go on without them"
            f"{_again(target, notes)}"
        )
    if not any(row["accepted"] for row in state["targets"]) and config.accepted:
        raise UserError(f"No image lies in the band {config.band}: widen synthesize.band")
    cost = state["spend"].known
    return {"targets": state["targets"], "images": made, "quarantined": lost, "cost": cost}


def _again(target: Run, notes: list[dict[str, str]]) -> str:
    """What becomes of the quarantined ones that are whole shards: single rows stay out of their committed shard."""
    num_shards = sum(note["key"].endswith(".parquet") for note in notes)
    if not num_shards:
        return ""
    return (
        f"; the {num_shards} whole shards of them are tried again once quarantine/{TABLE} and _attempts/{TABLE} in "
        f"{target.url} are deleted"
    )


def _is_of(key: str, names: set[str]) -> bool:
    """Whether a quarantined shard key or sample id belongs to a generator and grade of `names`."""
    stem = key.removeprefix(f"{TABLE}/").removesuffix(".parquet")
    return stem.rpartition("-" if key.endswith(".parquet") else "/")[0] in names


def pool(shape: Shape, num_tickets: int) -> ray.data.ActorPoolStrategy:
    """As many generators as the shape says, or between its two bounds: Ray Data adds and takes away by their load."""
    most = min(shape.generators, num_tickets)
    least = min(shape.min_generators or most, most)
    # One shard in work and one waiting: a third would only be lost with its actor.
    return ray.data.ActorPoolStrategy(
        min_size=least, max_size=most, initial_size=least, max_tasks_in_flight_per_actor=2
    )


def _stream(work: Work, shape: Shape, name: str, quota: Any) -> None:
    """One streaming execution: tickets are as many as the budget allows; it ends when the quotas are met."""
    size = work.recipe.synthesize.shard_size
    total, done = sum(item.least for item in work.wanted) * size, 0
    context = ray.data.DataContext.get_current().copy()
    # Else Ray Data wraps what the stages raise, and what it wrapped is lost on the way to the driver.
    context.raise_original_map_exception = True
    with ray.data.DataContext.current(context):
        stream = _pipeline(work, shape, name)
        with session.metered("synthesize", total, "images") as meter, Overseer(quota, size, meter) as watch:
            for row in stream.iter_rows():
                done += row["rows"]
                session.report_to(meter, done=done)
                state = watch.look()
                telemetry.quota(state["targets"], work.wanted)
                if watch.is_over(state):
                    break


def _pipeline(work: Work, shape: Shape, name: str) -> ray.data.Dataset:
    """Tickets -> generators (-> scorers) -> sink, a shard a row; nothing runs until it is read."""
    config, url = work.recipe.synthesize, work.target.url
    num_tickets = sum(item.most for item in work.wanted)
    common = {"url": url, "quota": name, "hang_seconds": config.hang_seconds}
    table: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow", "zero_copy_batch": True}
    making = {"maker": work.maker, "arguments": work.arguments, "shard_size": config.shard_size}
    stream = tickets(num_tickets).map_batches(
        Generate,
        fn_constructor_kwargs=common | making,
        batch_size=1,
        compute=pool(shape, num_tickets),
        num_cpus=shape.generator_cpus,
        num_gpus=shape.generator_gpus or None,
        **placement.options(shape.generator_gpus),
    )
    if work.scorer:
        size = min(shape.scorers, num_tickets)
        stream = stream.map_batches(
            Score,
            fn_constructor_kwargs=common | {"maker": work.scorer, "arguments": work.scoring},
            **table,
            compute=ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=2),
            num_cpus=shape.scorer_cpus,
            num_gpus=shape.scorer_gpus or None,
            **placement.options(shape.scorer_gpus),
        )
    ending = {"url": url, "recipe": work.recipe, "ensemble_id": work.ensemble_id, "quota": name}
    return stream.map_batches(
        commit_shard,  # type: ignore[arg-type]  # takes a pyarrow table, by batch_format
        **table,
        fn_kwargs=ending | {"versions": versions()},
        num_cpus=SINK_CPUS,
        **placement.options(),
    )
