"""Which shard next: a small named actor that leases shards until every quota is met.

A quota counts usable images inside the band in the contiguous prefix of shards that are committed or
quarantined, so which images count does not depend on which machine was faster. Leases are keyed by
ticket: a retried call gets the same shard again. The actor's state is rebuilt from the commits, so
losing it costs at most one shard made twice, which first-writer-wins makes harmless.
"""

from dataclasses import dataclass, field
from typing import Any

import ray

from raydr import lineage, shards
from raydr.storage import Run


@dataclass(frozen=True)
class Target:
    """What is wanted of one generator and grade."""

    generator_id: str
    grade: int
    # Shards that are made in any case.
    least: int
    # Images inside the band that are wanted; 0 = only `least`.
    accepted: int
    # Shards that the budget allows.
    most: int


@dataclass
class Progress:
    """Accepted images per finished shard number; None marks a quarantined one."""

    finished: dict[int, int | None] = field(default_factory=dict)
    leased: set[int] = field(default_factory=set)

    def prefix(self) -> tuple[int, int]:
        """(shards, accepted images) of the contiguous finished prefix."""
        number = accepted = 0
        while number in self.finished:
            accepted += self.finished[number] or 0
            number += 1
        return number, accepted


def is_met(target: Target, progress: Progress) -> bool:
    number, accepted = progress.prefix()
    return number >= target.least and accepted >= target.accepted


def next_number(target: Target, progress: Progress) -> int | None:
    """The lowest shard that is neither finished nor leased, if one more is likely to be needed.

    Shards in flight are credited with the rate measured so far, less 20 %, so that a quota is
    overshot by about one shard an actor rather than by the whole pool.
    """
    if is_met(target, progress):
        return None
    numbers = range(target.most)
    number = next((n for n in numbers if n not in progress.finished and n not in progress.leased), None)
    if number is None or number < target.least:
        return number
    done = [count for count in progress.finished.values() if count is not None]
    rate = 0.8 * sum(done) / len(done) if done else 0.0
    in_flight = len(progress.leased - set(progress.finished))
    return number if sum(done) + rate * in_flight < target.accepted else None


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Quota:
    """Leases shards to tickets; `url` is the run, `max_starts` the crashes a shard may cost."""

    def __init__(self, url: str, targets: list[Target], max_starts: int) -> None:
        self._run, self._targets, self._max_starts = Run(url), targets, max_starts
        self._progress = {(t.generator_id, t.grade): Progress() for t in targets}
        self._leases: dict[int, tuple[Target, int]] = {}
        done = shards.commits(self._run, "synthetic")
        bad = {row["key"] for row in shards.quarantined(self._run, "synthetic")}
        for target in targets:
            progress = self._progress[target.generator_id, target.grade]
            for number in range(target.most):
                key = lineage.shard_key(target.generator_id, target.grade, number)
                if key in done:
                    progress.finished[number] = done[key].extra.get("accepted", 0)
                elif key in bad:
                    progress.finished[number] = None
                elif number > target.least + len(done):
                    break

    def lease(self, ticket: int, node: str) -> dict[str, Any] | None:
        """The shard for `ticket`, or None when nothing more is wanted. Counts starts durably."""
        if ticket not in self._leases:
            choice = self._choose()
            if choice is None:
                return None
            self._leases[ticket] = choice
        target, number = self._leases[ticket]
        key = lineage.shard_key(target.generator_id, target.grade, number)
        progress = self._progress[target.generator_id, target.grade]
        if number in progress.finished:  # another ticket's retry was faster
            del self._leases[ticket]
            return self.lease(ticket, node)
        if shards.record_start(self._run, key, node) > self._max_starts:
            detail = f"started {self._max_starts} times without an end"
            shards.quarantine(self._run, "synthetic", key, "crashed", detail)
            progress.finished[number] = None
            del self._leases[ticket]
            return self.lease(ticket, node)
        return {"key": key, "generator_id": target.generator_id, "grade": target.grade, "number": number}

    def _choose(self) -> tuple[Target, int] | None:
        # The least advanced target first, so that all grades end together.
        order = sorted(
            self._targets, key=lambda t: len(self._progress[t.generator_id, t.grade].leased) / max(1, t.least)
        )
        for target in order:
            progress = self._progress[target.generator_id, target.grade]
            number = next_number(target, progress)
            if number is not None:
                progress.leased.add(number)
                return target, number
        return None

    def finish(self, key: str, generator_id: str, grade: int, number: int, accepted: int) -> None:
        progress = self._progress[generator_id, grade]
        progress.finished[number] = accepted

    def state(self) -> dict[str, Any]:
        """{"met": bool, "exhausted": [targets whose budget ended first], per target counts}."""
        rows, met, exhausted = [], True, []
        for target in self._targets:
            progress = self._progress[target.generator_id, target.grade]
            number, accepted = progress.prefix()
            done = is_met(target, progress)
            met &= done
            if not done and len(progress.finished) >= target.most:
                exhausted.append(f"{target.generator_id} grade {target.grade}")
            rows.append(
                {
                    "generator_id": target.generator_id,
                    "grade": target.grade,
                    "shards": number,
                    "accepted": accepted,
                    "met": done,
                }
            )
        return {"met": met, "exhausted": exhausted, "targets": rows}
