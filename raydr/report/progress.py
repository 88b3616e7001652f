"""How far a run is, for the live page: stages, quotas with their rates, trials by arm."""

import dataclasses
import time
from collections import Counter, deque
from collections.abc import Iterable
from typing import Any

from raydr import plan, shards, trials
from raydr.config import Recipe
from raydr.record import replicates
from raydr.report import status, tables
from raydr.storage import Run

# A rate is over the last minutes: long enough for a shard to end, short enough to show a pool that has died.
WINDOW_SECONDS, LEAST_SECONDS = 300.0, 10.0


class Rates:
    """Shards a second by generator and grade, and trials, from what was seen of the commit records' names."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, dict[str, int]]] = deque()

    def see(self, names: Iterable[str], now: float | None = None) -> None:
        """`names` are the commit records there now."""
        counts: dict[str, int] = {}
        for name in names:
            key = group_of(name)
            if key:
                counts[key] = counts.get(key, 0) + 1
        now = time.monotonic() if now is None else now
        self._seen.append((now, counts))
        while now - self._seen[0][0] > WINDOW_SECONDS:
            self._seen.popleft()

    def of(self, key: str) -> float | None:
        """Per second; None before anything was watched for long enough."""
        if not self._seen or self._seen[-1][0] - self._seen[0][0] < LEAST_SECONDS:
            return None
        (start, before), (end, after) = self._seen[0], self._seen[-1]
        return (after.get(key, 0) - before.get(key, 0)) / (end - start)


def group_of(name: str) -> str | None:
    """ "GENERATOR/gGRADE" of a synthetic shard's commit record, "trials" of a trial's; None for any other."""
    parts = name.removesuffix(".json").split("/")
    if parts[-3:-1] == ["trials", "results"]:
        return "trials"
    if len(parts) > 2 and parts[-3] == "synthetic":
        return f"{parts[-2]}/{parts[-1].split('-')[0]}"
    return None


def progress(recipe: Recipe, target: Run, rates: Rates, rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """{"stages": [...], "quotas": [...], "arms": [...], "trials": {...}}; `rows` are the trials that have ended.

    Raises what reading the run raises.
    """
    parts = replicates(recipe, target)
    ended = [
        sum(place.exists(f"logs/stage-{name}.json") for _, place in parts) for name in tables.STAGES if name != "report"
    ]
    begun = set()
    for _, place in parts:
        if place.exists("recipe.json"):
            begun |= set(place.read_json("recipe.json").get("begun", []))
    stages = []
    for row, count in zip(plan.describe(recipe, target), ended, strict=True):
        state = "finished" if count == len(parts) else "running" if row.stage in begun else "to come"
        stages.append({"stage": row.stage, "work": row.work, "done": row.done, "cost": row.cost, "state": state})
    rows = list(rows)
    counted = Counter(row["arm"] for row in rows if row["purpose"] == "arm")
    wanted = {name: _trials_of(recipe, (name,)) - _trials_of(recipe, ()) for name in recipe.sweep.arms}
    return {
        "stages": stages,
        "quotas": [row for _, place in parts for row in _quotas(recipe, place, rates)],
        "arms": [{"arm": name, "done": counted[name], "wanted": wanted[name] * len(parts)} for name in wanted],
        "trials": {"done": len(rows), "wanted": trials.count(recipe) * len(parts), "rate": rates.of("trials")},
    }


def _trials_of(recipe: Recipe, arms: tuple[str, ...]) -> int:
    return trials.count(dataclasses.replace(recipe, sweep=dataclasses.replace(recipe.sweep, arms=arms)))


def _quotas(recipe: Recipe, place: Run, rates: Rates) -> list[dict[str, Any]]:
    config, found = recipe.synthesize, []
    lost = [note["key"] for note in shards.quarantined(place, status.TABLE)]
    for (generator_id, grade), work in sorted(status.look(place).groups.items()):
        rate = rates.of(f"{generator_id}/g{grade}")
        done, wanted = (work.accepted, config.accepted) if config.accepted else (work.images, config.count)
        found.append(
            {
                "generator_id": generator_id,
                "grade": grade,
                "made": work.images,
                "accepted": work.accepted,
                "of": "in the band" if config.accepted else "images",
                "done": done,
                "wanted": wanted,
                "share": min(1.0, done / wanted),
                "images_per_second": None if rate is None else rate * config.shard_size,
                "quarantined": sum(f"{generator_id}/g{grade}" in key for key in lost),
            }
        )
    return found
