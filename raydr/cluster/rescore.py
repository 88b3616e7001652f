"""`synthetic` -> `scores`: another ensemble judges the images that are there (Ray Data). Nothing is generated.

    from raydr.cluster import rescore
    rescore.run(recipe, "out", "path/to/graders")

One shard of scores for one shard of images, committed exactly once, so the same command again goes on, and after more
images were made judges only those. `raydr select --ensemble ID` takes these scores.
"""

import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray

from raydr import schema, selection, shards, terminal
from raydr.cluster import device, placement, session
from raydr.config import Recipe
from raydr.errors import BudgetExhausted, MissingInput, UserError
from raydr.identity import fingerprint
from raydr.ledger import stem
from raydr.shapes import Shape
from raydr.storage import Run

# Starts of a shard in one session after which it is left out: its images end the process that judges them.
MAX_STARTS = 3
# Shards of one call at most: what is judged again where a worker is lost is only the shard it was at.
MOST_SHARDS = 8

# -- on the nodes ---------------------------------------------------------------------------------


class Rescore:
    """Actor that judges the shards of a call one by one; `prefixes` are the members' folders inside the run."""

    def __init__(self, url: str, ensemble_id: str, prefixes: tuple[str, ...], name: str, gpu: bool, threads: int):
        self._run, self._name, self._ensemble_id = Run(url), name, ensemble_id
        self._prefixes, self._gpu, self._threads = prefixes, gpu, threads
        self._loaded: Any = None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[str]]:
        return {"answer": [json.dumps(self._judge(json.loads(item))) for item in batch["item"]]}

    def _judge(self, item: dict[str, Any]) -> dict[str, Any]:
        from raydr.grading import rescoring

        try:
            starts = self._starts(item["scores"])
            # Only a second start can find it done, by a call that died at a later shard: a bucket is asked then alone.
            done = shards.standing(self._run, item["scores"], item["fingerprint"]) if starts > 1 else None
            if done:
                return {"rows": done.rows}
            if starts > MAX_STARTS:
                detail = f"the process that judged it ended {MAX_STARTS} times"
                shards.quarantine(self._run, "scores", item["scores"], "crashed", detail)
                return {"lost": item["key"]}
            record = rescoring.score_shard(self._run, self._judges(), self._ensemble_id, item)
        except UserError as error:  # Ray would wrap it in an error of its own and try again for ever
            return {"refused": str(error)}
        return {"rows": record.rows}

    def _judges(self) -> Any:
        """The members, loaded by the first call: of what a constructor raises Ray keeps no sentence."""
        if self._loaded is None:
            from raydr.grading import rescoring

            judges = rescoring.Judges(self._ensemble_id, self._prefixes)
            where = device.of_worker(self._gpu, self._threads)
            self._loaded = rescoring.load(self._run, judges, session.node_cache(self._run), where)
        return self._loaded

    def _starts(self, key: str) -> int:
        """Starts of this shard in this session, the present one included; earlier drivers may just have been killed."""
        shards.record_start(self._run, key, self._name)
        return sum(label == self._name for label in shards.starts(self._run, stem(key)).get(key, []))


# -- on the driver --------------------------------------------------------------------------------


def run(
    recipe: Recipe,
    out: str | Run,
    ensemble: str,
    role: str = "score",
    shape: Shape | None = None,
    paper_mode: bool = False,
) -> dict:
    """Score all committed images by `ensemble`; returns {ensemble_id, members, images, scored}. Resumes.

    `ensemble` is an id of the run's own or a folder of members, `role` score, audit or all. Raises LeakageError where
    a member has seen the evaluated fold or the test set, or was imported and `paper_mode` is not asked for,
    BudgetExhausted where shards could not be judged.
    """
    from raydr.grading import rescoring

    shape = shape or Shape()
    target = out if isinstance(out, Run) else Run(out)
    if not shards.commits(target, "synthetic"):
        raise MissingInput(f"{target.url} holds no synthetic images: run `raydr synthesize` first, or check --out")
    cache = session.node_cache(target)
    judges = rescoring.find(target, ensemble, role, cache)
    refuse_leaks(target, rescoring.metas(target, judges, cache), recipe.fold, paper_mode)
    items = rescoring.plan(target, judges)
    prefix = f"scores/{judges.ensemble_id}"
    done = shards.commits(target, prefix)
    todo = [item for item in items if shards.pending([item["scores"]], item["fingerprint"], done)]
    if todo:
        with session.session(shape):
            lost = _stream(target, shape, judges.ensemble_id, judges.prefixes, todo)
        if lost:
            raise BudgetExhausted(
                f"{len(lost)} of {len(items)} shards could not be scored, the first is {lost[0]}: "
                f"{target.url}/quarantine says why; the same command tries them again"
            )
    shards.complete(target, prefix, [item["scores"] for item in items])
    return {
        "ensemble_id": judges.ensemble_id,
        "members": [part.rsplit("/", 1)[-1] for part in judges.prefixes],
        "images": sum(item["rows"] for item in items),
        "scored": sum(item["rows"] for item in todo),
    }


def refuse_leaks(run: Run, members: Sequence[Any], fold: int | None, paper_mode: bool = False) -> None:
    """LeakageError where a member has seen a test photograph, or a validation one of the evaluated fold (strict).

    Of an imported member nobody knows: it is refused but in paper mode, where a note names it.
    """
    from raydr.grading.ensemble import check_leakage

    unproven = [meta.name for meta in members if meta.provenance != "trained"]
    if paper_mode and unproven:
        terminal.note(
            f"paper mode: {', '.join(unproven)} may have seen photographs that this run evaluates on; results that "
            "rest on these scores compare with the paper and show nothing beyond it"
        )
        members = [meta for meta in members if meta.provenance == "trained"]
    real = shards.read(run, "real", schema.REAL, ["image_id", "split", "fold", "grade"])
    for part in ("test", "validation"):
        hidden = real["image_id"].take(selection.part_of(real, part, fold)).to_pylist()
        for meta in members:
            check_leakage(meta, hidden, part)


def each_call(num_shards: int, actors: int) -> int:
    """Shards of one call: a call costs Ray some 20 ms of CPU, a third of small graders' work on 64 small images."""
    return max(1, min(MOST_SHARDS, num_shards // (8 * actors)))


def _stream(
    target: Run, shape: Shape, ensemble_id: str, prefixes: tuple[str, ...], todo: list[dict[str, Any]]
) -> list[str]:
    """Judge the shards side by side; the keys of those that ended their process too often."""
    size = min(shape.generators, len(todo))
    calls = -(-len(todo) // each_call(len(todo), size))
    source = ray.data.from_items([{"item": json.dumps(item)} for item in todo], override_num_blocks=calls)
    answers = source.map_batches(
        Rescore,
        fn_constructor_kwargs={
            "url": target.url,
            "ensemble_id": ensemble_id,
            "prefixes": prefixes,
            "name": f"rescore-{fingerprint(target.url, time.time())}",
            "gpu": shape.generator_gpus > 0,
            # Not by the shards that are left: other threads sum in another order, and a repeated shard would differ.
            "threads": max(1, session.cpus() // shape.generators),
        },
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=2),
        num_cpus=shape.generator_cpus,
        num_gpus=shape.generator_gpus or None,
        **placement.options(shape.generator_gpus),
    )
    judged, lost = 0, []
    with session.metered("rescore", sum(item["rows"] for item in todo), "images") as meter:
        for row in answers.iter_rows():
            answer = json.loads(row["answer"])
            if "refused" in answer:
                raise UserError(answer["refused"])
            lost += [answer["lost"]] if "lost" in answer else []
            judged += answer.get("rows", 0)
            session.report_to(meter, done=judged)
    return lost
