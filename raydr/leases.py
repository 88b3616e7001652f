"""Which shard next, and which shard no more: leases of shards to tickets until every quota is met. No Ray here.

A quota counts usable images inside the band in the contiguous prefix of shards that are committed or
quarantined, so which images count does not depend on which machine was faster. A ticket whose process died
asks again and gets the same shard; each start leaves an object in `_attempts`, so all of this is rebuilt from
the run's storage when whoever holds it dies.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from raydr import acceptance, lineage, shards
from raydr.attempts import Attempt, attempts, crashed, scorings
from raydr.finished import Finished
from raydr.storage import Run

TABLE = "synthetic"
# How a reason to close begins that is no user's wish to stop.
BUDGET, BROKEN = "budget", "broken"
# What a ticket gets that is to ask again: were it spent, idle actors would use up all of them while the last shards are
# made, and what these lack could not be leased.
LATER: dict[str, Any] = {}
# A session in which so many shards are lost, and more than are made, is not unlucky but broken.
FEW = 3


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
    # Of scores; None counts what the records say, whatever band they were made for.
    band: tuple[float, float] | None = None

    def key(self, number: int) -> str:
        return lineage.shard_key(self.generator_id, self.grade, number)

    @property
    def name(self) -> str:
        return f"{self.generator_id} grade {self.grade}"


@dataclass
class Progress:
    """Accepted images per finished shard number (None marks a quarantined one), and the numbers that are leased."""

    finished: Finished = field(default_factory=Finished)
    leased: set[int] = field(default_factory=set)
    _prefix: tuple[int, int] = (0, 0)
    _cursor: int = 0

    def __post_init__(self) -> None:
        self.finished = Finished(self.finished)

    def prefix(self, target: Target | None = None) -> tuple[int, int]:
        """(shards, accepted images) of the contiguous finished prefix, which only grows, but not beyond `target`.

        A pool of many finishes some shards more than a quota needs: they do not count, or it would depend on the pool.
        """
        number, accepted = self._prefix
        while number in self.finished and not (target and number >= target.least and accepted >= target.accepted):
            accepted += self.finished[number] or 0
            number += 1
        self._prefix = number, accepted
        return self._prefix

    def free(self) -> int:
        """The lowest number that is neither finished nor leased."""
        while self._cursor in self.finished or self._cursor in self.leased:
            self._cursor += 1
        return self._cursor

    def release(self, number: int) -> None:
        self.leased.discard(number)
        self._cursor = min(self._cursor, number)

    def in_flight(self) -> set[int]:
        self.leased = {number for number in self.leased if number not in self.finished}  # what is over is forgotten
        return self.leased


def is_met(target: Target, progress: Progress) -> bool:
    number, accepted = progress.prefix(target)
    return number >= target.least and accepted >= target.accepted


def next_number(target: Target, progress: Progress) -> int | None:
    """The lowest shard that is neither finished nor leased, if one more is likely to be needed.

    Shards in flight are credited with the rate measured so far, less 20 %, so that a quota is
    overshot by about one shard an actor rather than by the whole pool.
    """
    if is_met(target, progress):
        return None
    number = progress.free()
    if number >= target.most:
        return None
    if number < target.least:
        return number
    done = progress.finished
    rate = 0.8 * done.accepted / done.made if done.made else 0.0
    return number if done.accepted + rate * len(progress.in_flight()) < target.accepted else None


def remaining_shards(target: Target, made: int, accepted: int) -> int | None:
    """Shards still to make after `made` with `accepted` images, at the rate so far; None while it is unknown."""
    least = max(0, target.least - made)
    missing = target.accepted - accepted
    if missing <= 0:
        return least
    if not accepted:
        return None
    return min(max(least, math.ceil(missing / (accepted / made))), max(0, target.most - made))


class Leases:
    """Leases, starts, crashes and quotas of one stage; every method is quick but for one or two small writes."""

    def __init__(
        self,
        run: Run,
        targets: list[Target],
        session: str,
        max_crashes: int,
        dead: Callable[[], Collection[str]] = tuple,
    ) -> None:
        """`dead()` names the nodes that have gone since they were seen; `session` is unique to a driver's stage."""
        self._run, self._targets, self._session = run, targets, session
        self._max_crashes, self._dead = max_crashes, dead
        self._progress = {(t.generator_id, t.grade): Progress() for t in targets}
        self._leases: dict[int, tuple[Target, int]] = {}
        # By the token of a start: (how its process ended, in what words).
        self._reasons: dict[str, tuple[str, str]] = {}
        # Shards committed and lost since this session began.
        self.made, self.lost = 0, 0
        # Why nothing more is leased; None while it is.
        self.closed: str | None = None
        self._rebuild()

    def _rebuild(self) -> None:
        done = shards.commits(self._run, TABLE)
        bad = {row["key"] for row in shards.quarantined(self._run, TABLE)}
        labels = shards.starts(self._run, TABLE)
        self._starts = {key: attempts(names) for key, names in labels.items()}
        self._scorings = {key: scorings(names) for key, names in labels.items()}
        # Wherever they lie: a pool of many leases far beyond the contiguous ones.
        known = lineage.numbers_of([*done, *bad, *self._starts])
        for target in self._targets:
            stem = target.key(0).rpartition("-")[0]
            mine = {key: record for key, record in done.items() if key.rpartition("-")[0] == stem}
            accepted = acceptance.counted(self._run, mine, target.band)
            progress = self._progress[target.generator_id, target.grade]
            for number in known.get(stem, ()):
                key = target.key(number)
                if number >= target.most:
                    continue
                if key in done:
                    progress.finished[number] = accepted[key]
                elif key in bad:
                    progress.finished[number] = None
                begun = [item for item in self._starts.get(key, []) if item.session == self._session]
                if begun and number not in progress.finished:
                    progress.leased.add(number)
                    self._leases[begun[-1].ticket] = (target, number)

    def lease(self, ticket: int, node: str, token: str) -> dict[str, Any] | None:
        """The shard for `ticket`; LATER while those in flight may suffice, None when nothing more is wanted.

        Notes the start durably. `token` names the call: a lease that is asked for twice under one token started once.
        """
        while True:
            held = self._leases.get(ticket)
            if held is not None and held[1] in self._of(held[0]).finished:
                del self._leases[ticket]  # another ticket's retry was faster
                continue
            if held is None:
                held = None if self.closed else self._choose()
                if held is None:
                    return LATER if not self.closed and self._may_want_more() else None
                self._leases[ticket] = held
            target, number = held
            key = target.key(number)
            lease = {"key": key, "generator_id": target.generator_id, "grade": target.grade, "number": number}
            tries = self._starts.setdefault(key, [])
            if any(item.token == token for item in tries):
                return lease
            self._waive(key, tries)
            if self.closed:  # whoever made it died: the next start of the stage makes it
                self._of(target).release(number)
                del self._leases[ticket]
            elif len(crashed(tries, self._session)) >= self._max_crashes:
                self._give_up(target, number, tries, "process")
            else:
                attempt = Attempt(self._session, ticket, node, token)
                shards.record_start(self._run, key, attempt.label())
                tries.append(attempt)
                return lease

    def scoring(self, generator_id: str, grade: int, number: int, node: str, token: str) -> bool:
        """Note durably that a scorer starts on a shard; False where it is not wanted: it ended too many scorers."""
        target = next(t for t in self._targets if (t.generator_id, t.grade) == (generator_id, grade))
        key, finished = target.key(number), self._of(target).finished
        if number in finished and finished[number] is None:
            return False
        tries = self._scorings.setdefault(key, [])
        if any(item.token == token for item in tries):
            return True
        self._waive(key, tries)
        if len(crashed(tries, self._session)) >= self._max_crashes:
            self._give_up(target, number, tries, "scorer")
            return False
        shards.record_start(self._run, key, f"scoring.{self._session}.{node}.{token}")
        tries.append(Attempt(self._session, 0, node, token))
        return True

    def _of(self, target: Target) -> Progress:
        return self._progress[target.generator_id, target.grade]

    def _waive(self, key: str, tries: list[Attempt]) -> None:
        """Forget this session's starts on nodes that have gone: the node ended them, not the shard."""
        gone = set(self._dead()) if any(item.session == self._session for item in tries) else set()
        for item in [item for item in tries if item.session == self._session and item.node in gone]:
            shards.record_start(self._run, key, f"waived.{item.token}")
            tries.remove(item)

    def _give_up(self, target: Target, number: int, tries: list[Attempt], who: str) -> None:
        reasons = [self._reasons[item.token] for item in tries if item.token in self._reasons]
        nodes = ", ".join(dict.fromkeys(item.node for item in tries))
        ended = f"its {who} ended {len(crashed(tries, self._session))} times (nodes {nodes})"
        detail = "; ".join([ended, *dict.fromkeys(words for _, words in reasons)])
        # One word of a process about itself outweighs deaths in silence.
        shards.quarantine(self._run, TABLE, target.key(number), reasons[-1][0] if reasons else "crashed", detail)
        self._of(target).finished[number] = None
        self.lost += 1
        if self.lost >= FEW and self.lost > self.made:
            self.close(f"{BROKEN}: {self.lost} shards were lost and {self.made} made, the last because {detail}")

    def _choose(self) -> tuple[Target, int] | None:
        # The least advanced target first, so that all grades end together.
        def advanced(target: Target) -> float:
            progress = self._of(target)
            return (len(progress.finished) + len(progress.in_flight())) / max(1, target.least)

        for target in sorted(self._targets, key=advanced):
            number = next_number(target, self._of(target))
            if number is not None:
                self._of(target).leased.add(number)
                return target, number
        return None

    def _may_want_more(self) -> bool:
        """Whether shards in flight are trusted with the rest of a quota: if they bring less, one more is wanted."""
        unmet = [(target, self._of(target)) for target in self._targets if not is_met(target, self._of(target))]
        return any(progress.in_flight() and progress.free() < target.most for target, progress in unmet)

    def note(self, token: str, kind: str, words: str) -> None:
        """Why the process of a start is about to end, said by itself; `kind` (hung, raised) is what the note says."""
        self._reasons[token] = kind, words

    def finish(self, generator_id: str, grade: int, number: int, accepted: int) -> None:
        progress = self._progress[generator_id, grade]
        self.made += number not in progress.finished
        progress.finished[number] = accepted

    def close(self, reason: str) -> None:
        """Lease no more; the first reason stays."""
        self.closed = self.closed or reason

    def state(self) -> dict[str, Any]:
        """What is done: {met, exhausted: names, closed, in_flight, made, lost, remaining (shards or None), targets}."""
        rows, exhausted, remaining = [], [], 0 if self._targets else None
        for target in self._targets:
            progress = self._of(target)
            number, accepted = progress.prefix(target)
            done = is_met(target, progress)
            if not done and len(progress.finished) >= target.most:
                exhausted.append(target.name)
            left = 0 if done else remaining_shards(target, number, accepted)
            remaining = None if left is None or remaining is None else remaining + left
            row = {"generator_id": target.generator_id, "grade": target.grade, "shards": number}
            rows.append(row | {"accepted": accepted, "met": done, "remaining": left})
        return {
            "met": all(row["met"] for row in rows),
            "exhausted": exhausted,
            "closed": self.closed,
            "in_flight": sum(len(self._of(target).in_flight()) for target in self._targets),
            "made": self.made,
            "lost": self.lost,
            "remaining": remaining,
            "targets": rows,
        }
