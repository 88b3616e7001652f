"""What the pools' actors of synthesis share: a watchdog, poison kept apart, and a last word to the quota."""

import contextlib
import faulthandler
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray

from raydr import lineage, shards
from raydr.cluster import session
from raydr.cluster.quota import SHORT_ID
from raydr.errors import UserError
from raydr.leases import TABLE
from raydr.storage import Run

Beat = Callable[[], None]


class Watchdog:
    """Ends this process when no beat comes for `seconds` while something is watched."""

    def __init__(self, seconds: float, on_hang: Callable[[str, str], None]) -> None:
        self._seconds, self._on_hang = seconds, on_hang
        self._last: float | None = None
        threading.Thread(target=self._look, name="raydr-watchdog", daemon=True).start()

    def beat(self) -> None:
        self._last = time.monotonic()
        # Code that hangs without giving up the interpreter stops our thread too; this one needs no interpreter.
        faulthandler.dump_traceback_later(2 * self._seconds + 5, exit=True, file=2)

    @contextlib.contextmanager
    def watching(self) -> Iterator[Beat]:
        self.beat()
        try:
            yield self.beat
        finally:
            self._last = None
            faulthandler.cancel_dump_traceback_later()

    def _look(self) -> None:
        while True:
            time.sleep(min(1.0, self._seconds / 4))
            last = self._last
            if last is not None and time.monotonic() - last > self._seconds:
                self._on_hang("hung", f"no step was finished for {self._seconds:g} s")
                os._exit(1)


class Worker:
    """Actor of a pool that works on leased shards with `maker(**arguments)`."""

    def __init__(self, maker: type, arguments: dict[str, Any], url: str, quota: str, hang_seconds: float) -> None:
        self._refused: UserError | None = None
        self._maker: Any = None
        try:
            self._maker = maker(**arguments)
        except UserError as error:  # of what a constructor raises Ray keeps a traceback; the first call says it
            self._refused = error
        self._run, self._quota_name = Run(url), quota
        self._node = ray.get_runtime_context().get_node_id()[:SHORT_ID]
        self._token = ""
        self._watchdog = Watchdog(hang_seconds, self._say)

    def _quota(self) -> Any:
        return ray.get_actor(self._quota_name, namespace=session.NAMESPACE)

    def _say(self, kind: str, words: str) -> None:
        # The process ends after this, whether the quota hears of it or not.
        with contextlib.suppress(ray.exceptions.RayError, ValueError):
            ray.get(self._quota().note.remote(self._token, kind, words), timeout=5)

    def _survivors(
        self, lease: dict[str, Any], indices: Sequence[int], make: Callable[[Sequence[int], Beat], pa.Table]
    ) -> pa.Table:
        """The rows of `indices` that `make` can make, in their order; the others are quarantined."""
        with self._watchdog.watching() as beat:
            parts, poison = isolate(lambda part: make(part, beat), indices)
        if not parts:  # then it is not the rows: this process or its device is broken
            self._say("raised", f"every row raised, the last {poison[-1][1]}")
            os._exit(1)
        for index, reason in poison:
            name = lineage.sample_id(lease["generator_id"], lease["grade"], index)
            shards.quarantine(self._run, TABLE, name, "raised", reason)
        return pa.concat_tables(parts).combine_chunks()


def isolate(
    make: Callable[[Sequence[int]], pa.Table], indices: Sequence[int]
) -> tuple[list[pa.Table], list[tuple[int, str]]]:
    """(tables of the rows that can be made, [(index, error) of those that raise]), found by halving.

    Pixels do not depend on neighbours, so the good rows are what they would have been. A user's mistakes are
    no fault of a row: they are raised. So is a batch too large for the GPU, whose halves would fit: every shard
    would be made twice, in silence.
    """
    try:
        return [make(indices)], []
    except UserError:
        raise
    except Exception as error:  # whatever a model or a codec raises: it is written down, and counted at the end
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which not every worker has imported
            raise UserError(
                f"The GPU's memory did not suffice ({str(error).splitlines()[0][:200]}): lower "
                "synthesize.sampler.batch, or give generators or scorers more of a GPU (--shape.generator-gpus, "
                "--shape.scorer-gpus)"
            ) from None
        if len(indices) == 1:
            return [], [(indices[0], f"{type(error).__name__}: {str(error)[:300]}")]
    half = len(indices) // 2
    left, right = isolate(make, indices[:half]), isolate(make, indices[half:])
    return left[0] + right[0], left[1] + right[1]
