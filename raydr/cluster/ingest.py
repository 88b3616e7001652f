"""Sources -> `real`, as shards that are committed exactly once (Ray Data).

    from raydr.cluster import ingest
    ingest.run(recipe, "out")

Here are the phantoms, and what all sources share; photographs from elsewhere are in ingest_source.py.
"""

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from raydr import lineage, schema, shards
from raydr.cluster import placement, session, source_record
from raydr.config import Recipe
from raydr.errors import MissingInput, UserError
from raydr.fundus.phantom import render
from raydr.fundus.phash import phash
from raydr.grades import NUM_GRADES
from raydr.identity import rng_of, sha256
from raydr.images import encode
from raydr.storage import Run

# Shards of one Ray task at most: what a lost worker or a cluster that grows has to wait for.
MOST_SHARDS = 16
# The same where a shard takes some ten milliseconds.
MOST_QUICK_SHARDS = 256

# -- on the nodes ---------------------------------------------------------------------------------


def shard_task(
    batch: dict[str, np.ndarray], work: Callable[..., dict[str, Any]], arguments: tuple, meter: str
) -> dict[str, list]:
    """The shards of one Ray task, told to the meter one by one, since their answers come together at the end.

    A user's mistake comes back as a sentence: Ray would wrap it in its own error.
    """
    answers: list[dict[str, Any]] = []
    for number, portion in zip(batch["number"], batch["portion"], strict=True):
        done = 0
        for plan in json.loads(portion):
            try:
                answers.append(work(plan, *arguments))
                done += answers[-1]["done"]
                session.report_to(meter, **{f"done:{number}": done})
            except UserError as error:
                answers.append({"refused": str(error)})
    return {"answer": [json.dumps(answer) for answer in answers]}


def render_shard(plan: dict[str, Any], url: str, recipe: Recipe) -> dict[str, Any]:
    """Render, encode and commit one shard of phantoms; returns how many photographs are done."""
    fingerprint = lineage.phantom_fingerprint(recipe, plan["set"])
    done = shards.standing(Run(url), plan["key"], fingerprint)
    if done:
        return {"done": done.rows}
    part = recipe.ingest.phantoms[plan["set"]]
    seed, px = lineage.phantom_seed(recipe, plan["set"]), recipe.ingest.px
    rows = []
    for index, grade in zip(plan["indices"], plan["grades"], strict=True):
        pixels, ledger = render(seed, index, grade, px, part.dataset)
        data = encode(pixels)
        rows.append(
            {
                "image_id": f"{part.dataset}/{part.split}-{index:06d}",
                "dataset": part.dataset,
                "split": part.split,
                "fold": None,
                "patient_id": None,
                "grade": grade,
                "gradable": True,
                "stratum": "phantom",
                "image": data,
                "width": px,
                "height": px,
                "source_width": None,
                "source_height": None,
                "sha256": sha256(data),
                "phash": phash(pixels),
                "lesions": json.dumps(ledger, separators=(",", ":")),
                "source_border": None,
            }
        )
    table = pa.Table.from_pylist(rows, schema=schema.REAL)
    record = shards.commit(Run(url), plan["key"], table, schema.REAL, fingerprint)
    return {"done": record.rows}


# -- on the driver --------------------------------------------------------------------------------


def plan_phantoms(recipe: Recipe) -> Iterator[dict[str, Any]]:
    """Shards of every phantom set; grades are shuffled over the set so that shards look alike."""
    for position, part in enumerate(recipe.ingest.phantoms):
        seed = lineage.phantom_seed(recipe, position)
        grades = rng_of("phantom-grades", seed).permutation(np.repeat(np.arange(5), part.counts))
        size = recipe.ingest.shard_size
        for number, start in enumerate(range(0, len(grades), size)):
            indices = list(range(start, min(start + size, len(grades))))
            yield {
                "key": f"real/phantom-{part.dataset}-{part.split}-{number:06d}.parquet",
                "set": position,
                "indices": indices,
                "grades": [int(grades[index]) for index in indices],
            }


def portions(count: int, cpus: int) -> list[int]:
    """How many shards each Ray task takes, in order: large portions first, single shards last.

    A task's turn-around leaves its core idle for .1 to .2 s, half of what drawing a shard of 64 phantoms takes; so each
    round of tasks, one a CPU, takes three quarters of what is left, and the small ones at the end let cores of unequal
    speed finish together (factoring, Hummel et al. 1992).
    """
    sizes: list[int] = []
    while count:
        size = min(MOST_SHARDS, max(1, 3 * count // (4 * cpus)))
        for _ in range(cpus):
            sizes.append(min(size, count))
            count -= sizes[-1]
    return [size for size in sizes if size]


def equal_portions(count: int, cpus: int) -> list[int]:
    """Two a CPU, for shards that take so little that the turn-around of further tasks would be most of it."""
    tasks = min(count, max(2 * cpus, -(-count // MOST_QUICK_SHARDS)))
    return [len(part) for part in np.array_split(np.arange(count), tasks)]


def map_shards(
    work: Callable[..., dict[str, Any]],
    plans: Sequence[Any],
    *arguments: Any,
    meter: str,
    portions: Callable[[int, int], list[int]] = portions,
) -> Iterator[dict[str, Any]]:
    """Answers of `work(plan, *arguments)` on one CPU each, as their tasks end; `portions` says which share a Ray task.

    An answer's "done" is a number of photographs, which the `meter` adds up. Raises UserError with what a task refused;
    shards committed until then stay.
    """
    rest = iter(plans)
    parts = [
        {"number": number, "portion": json.dumps(list(islice(rest, size)))}
        for number, size in enumerate(portions(len(plans), session.cpus()))
    ]
    source = ray.data.from_items(parts, override_num_blocks=len(parts))
    answers = source.map_batches(
        partial(shard_task, work=work, arguments=arguments, meter=meter),
        batch_size=None,
        num_cpus=1,
        **placement.options(),
    )
    for row in answers.iter_rows():
        answer = json.loads(row["answer"])
        if "refused" in answer:
            raise UserError(answer["refused"])
        yield answer


def run(recipe: Recipe, out: str | Run) -> dict[str, Any]:
    """Write the phantom sets of `recipe` into `real`; returns counts per split. Resumes.

    A recipe of real photographs gets its counts from what `raydr ingest SOURCE PATH` has put there; MissingInput where
    that is nothing, or not all of it.
    """
    target = out if isinstance(out, Run) else Run(out)
    if recipe.ingest.source != "phantom":
        ready(recipe, target)
        return {**counted(target), "rendered": 0}
    plans = list(plan_phantoms(recipe))
    done = shards.commits(target, "real")
    todo = []
    for plan in plans:
        fingerprint = lineage.phantom_fingerprint(recipe, plan["set"])
        todo += [plan] if shards.pending([plan["key"]], fingerprint, done) else []
    total = sum(len(plan["indices"]) for plan in plans)
    if todo:
        finished = total - sum(len(plan["indices"]) for plan in todo)
        with session.metered("ingest", total, "photographs") as meter:
            before: dict[str, Any] = {"done:before": finished}
            session.report_to(meter, **before)
            deque(map_shards(render_shard, todo, target.url, recipe, meter=meter), maxlen=0)
    complete(recipe, target)
    from raydr.cluster.audit import write_card  # imports scikit-learn: a second that --help should not wait for

    write_card(target)
    counts = {part.split: list(part.counts) for part in recipe.ingest.phantoms}
    return {"photographs": total, "rendered": sum(len(plan["indices"]) for plan in todo), "counts": counts}


def planned(recipe: Recipe, target: Run) -> list[str]:
    """Keys of every shard that `real` is to hold: the recipe's phantoms and the settled sources."""
    phantoms = [plan["key"] for plan in plan_phantoms(recipe)] if recipe.ingest.source == "phantom" else []
    return phantoms + [key for source in source_record.sources(target) for key in source.keys]


def complete(recipe: Recipe, target: Run) -> bool:
    """Write the manifest of `real` if every planned shard is committed; whether it was."""
    keys, done = planned(recipe, target), shards.commits(target, "real")
    if not keys or any(key not in done for key in keys):
        return False
    shards.complete(target, "real", keys)
    return True


def ready(recipe: Recipe, target: Run) -> None:
    """MissingInput where the recipe wants photographs from a path and `real` is empty or half filled."""
    name = recipe.ingest.source
    if name == "phantom" or shards.completed(target, "real"):
        return
    half = unfinished(target)
    if half:
        raise MissingInput(
            f"{target.url} holds {half[0].dataset} in part only: run "
            f"`raydr ingest {half[0].reader} {half[0].path} --out {target.url}` again, which goes on where it stopped"
        )
    raise MissingInput(
        f"{target.url} holds no photographs yet: run `raydr ingest {name} PATH --recipe {recipe.name} "
        f"--out {target.url}` first"
    )


def unfinished(target: Run) -> list[source_record.Source]:
    """Sources that are settled, but not wholly in `real`: an ingest was cut, or a shard repaired away."""
    done = shards.commits(target, "real")
    return [source for source in source_record.sources(target) if not done.keys() >= set(source.keys)]


def counted(target: Run) -> dict[str, Any]:
    """{photographs, counts: {split: photographs per grade}} of `real`."""
    table = shards.read(target, "real", schema.REAL, ["split", "grade"], required=False)
    counts: dict[str, list[int]] = {}
    for split, grade in zip(table["split"].to_pylist(), table["grade"].to_pylist(), strict=True):
        tally = counts.setdefault(split, [0] * NUM_GRADES)
        if grade is not None:
            tally[grade] += 1
    return {"photographs": table.num_rows, "counts": counts}


def fingerprint_of(target: Run, external: bool = False) -> str:
    """Identity of the photographs in a run: hash of the committed shards of `real`.

    Those of external sources only count with `external`: nothing learns from them, and a run may get one more to
    evaluate its graders on without all of it being made again.
    """
    from raydr.identity import fingerprint

    aside = {key for source in source_record.sources(target) if source.role == "external" for key in source.keys}
    done = shards.commits(target, "real").items()
    return fingerprint(sorted((key, record.sha256) for key, record in done if external or key not in aside))
