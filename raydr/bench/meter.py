"""What a block of work costs this machine: CPU over all of its processes, peak memory, and what others took.

CPU-seconds are robust where wall time is not: a neighbour that takes a core doubles the seconds of a loop and hardly
moves its CPU-seconds.
"""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import psutil

from raydr.bench.fits import Point, at

EVERY_SECONDS = 0.5
# Sizes shared between processes are read page by page, 10 ms of CPU for a process with torch in it: once in 6 s.
MEMORY_EVERY = 12


@dataclass
class Recording:
    """Filled while the block runs; clocks are `time.time`, as in the files' times of modification."""

    started: float = 0.0
    seconds: float = 0.0
    # (time, CPU-seconds of this process and its descendants since the start), also of those that ended.
    cpu: list[Point] = field(default_factory=list)
    peak_bytes: int = 0
    # (time, {pid: resident bytes}), where asked for.
    resident: list[tuple[float, dict[int, int]]] = field(default_factory=list)
    # Those among them that were Ray's workers.
    workers: set[int] = field(default_factory=set)
    # Mean number of cores that other processes kept busy, and the load average at the end.
    others: float = 0.0
    load: float = 0.0
    # CPU-seconds of the recorder, which this process spends beside its work.
    watching: float = 0.0

    @property
    def cpu_seconds(self) -> float:
        return self.cpu[-1][1] if self.cpu else 0.0

    def cpu_points(self, points: list[Point]) -> list[Point]:
        """(units, CPU-seconds) at the moments of `points` = (units, seconds since the start)."""
        return [(units, at(self.cpu, self.started + seconds)) for units, seconds in points]


def family(process: psutil.Process) -> list[psutil.Process]:
    """`process` and its descendants: Ray's local cluster is made of such, and so are the bare loops."""
    with contextlib.suppress(psutil.Error):
        return [process, *process.children(recursive=True)]
    return [process]


class _Spent:
    """CPU-seconds of a family; a member that has ended counts with what was last seen of it."""

    def __init__(self) -> None:
        self._first: dict[tuple[int, float], float] = {}
        self._last: dict[tuple[int, float], float] = {}

    def see(self, processes: list[psutil.Process], starting: bool = False) -> float:
        for process in processes:
            with contextlib.suppress(psutil.Error):
                times, key = process.cpu_times(), (process.pid, process.create_time())
                self._last[key] = times.user + times.system
                # What was there before the block has already spent something; who comes later has not.
                self._first.setdefault(key, self._last[key] if starting else 0.0)
        return sum(self._last.values()) - sum(self._first.values())


def busy_seconds() -> float:
    """CPU-seconds of all processes of the machine since its start."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)


@contextlib.contextmanager
def recording(memory: bool = True, resident: bool = False, newcomers: bool = False) -> Iterator[Recording]:
    """Measure a block from a thread of its own, which takes about 1 % of a core and is left out of the CPU-seconds.

    `newcomers` leaves out every process that was there before: a bare loop must not be charged with an idle cluster.
    """
    result, stop, me, spent = Recording(), threading.Event(), psutil.Process(), _Spent()
    before = {member.pid for member in family(me)} if newcomers else set()

    def members() -> list[psutil.Process]:
        return [member for member in family(me) if member.pid not in before]

    spent.see(members(), starting=True)
    busy, result.started, clock = busy_seconds(), time.time(), time.perf_counter()
    result.cpu.append((result.started, 0.0))
    mine = 0.0  # CPU-seconds of the watching thread itself

    def count(now: list[psutil.Process]) -> None:
        # The system counts in steps of 10 ms, a thread's own time is exact: their difference must not run backwards.
        result.cpu.append((time.time(), max(result.cpu[-1][1], spent.see(now) - mine)))

    def watch() -> None:
        nonlocal mine
        number = 0
        while not stop.wait(EVERY_SECONDS):
            now = members()
            count(now)
            if memory and number % MEMORY_EVERY == 0:
                result.peak_bytes = max(result.peak_bytes, shared_once(now))
            if resident:
                result.resident.append((time.time(), _resident(now)))
                result.workers |= {member.pid for member in now if _is_worker(member)}
            number += 1
            result.watching = time.thread_time()
            mine = 0.0 if newcomers else result.watching

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield result
    finally:
        stop.set()
        thread.join()
        result.seconds = time.perf_counter() - clock
        count(members())
        if memory:
            result.peak_bytes = max(result.peak_bytes, shared_once(members()))
        result.others = max(0.0, (busy_seconds() - busy - result.cpu_seconds) / result.seconds)
        result.load = os.getloadavg()[0]


def shared_once(members: list[psutil.Process]) -> int:
    """Proportional set sizes, bytes: pages that processes share count once in all (resident sizes where unknown)."""
    total = 0
    for member in members:
        with contextlib.suppress(psutil.Error, OSError):
            full = member.memory_full_info()
            total += getattr(full, "pss", 0) or full.rss
    return total


def _is_worker(member: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return " ".join(member.cmdline()[:1]).startswith("ray::")
    return False


def _resident(members: list[psutil.Process]) -> dict[int, int]:
    sizes = {}
    for member in members:
        with contextlib.suppress(psutil.Error):
            sizes[member.pid] = member.memory_info().rss
    return sizes
