"""Watches a running synthesis from the driver: Ctrl-C, the stop mark, the forecast on the progress line."""

import contextlib
import os
import signal
import threading
import time
from types import FrameType
from typing import Any

import ray

from raydr import spending, terminal
from raydr.cluster import session

LOOK_SECONDS = 1.0
# The quota of a busy machine answers late; what it was asked is asked again.
ANSWER_SECONDS = 10.0
# A stream whose quota is closed with nothing in flight ends by itself as tickets come back empty; where no actor
# could be started none come back, and the driver leaves after so long.
PATIENCE_SECONDS = 20.0


class Over(BaseException):
    """Nothing is in flight and nothing more will come: ends the driver's wait."""


class Overseer:
    """Context manager around the reading of the stream. The first Ctrl-C closes the quota, the second interrupts."""

    def __init__(self, quota: Any, shard_size: int, meter: str) -> None:
        self._quota, self._shard_size, self._meter = quota, shard_size, meter
        self._asked, self._done = threading.Event(), threading.Event()
        self._told = self._leave = False
        self._before: Any = None
        # Python lets only the main thread handle signals.
        self._is_main = threading.current_thread() is threading.main_thread()
        self._thread = threading.Thread(target=self._watch, name="raydr-overseer", daemon=True)

    def __enter__(self) -> "Overseer":
        if self._is_main:
            self._before = signal.signal(signal.SIGINT, self._on_interrupt)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> bool:
        self._done.set()
        # Only then the handler: a signal that the thread is about to send would be taken for a person's Ctrl-C.
        self._thread.join(timeout=2 * ANSWER_SECONDS + LOOK_SECONDS)
        if self._is_main:
            signal.signal(signal.SIGINT, self._before)
        return kind is Over

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._leave:
            if self._done.is_set():
                return
            raise Over
        if self._asked.is_set():
            raise KeyboardInterrupt
        self._asked.set()

    def look(self) -> dict[str, Any]:
        """The quota's state."""
        return ray.get(self._quota.state.remote())

    @staticmethod
    def is_over(state: dict[str, Any]) -> bool:
        """Whether nothing more will come that is wanted."""
        return state["met"] or (state["closed"] is not None and not state["in_flight"])

    def _watch(self) -> None:
        over_since: float | None = None
        while not self._done.wait(LOOK_SECONDS):
            with contextlib.suppress(ray.exceptions.RayError, ray.exceptions.GetTimeoutError):
                if self._asked.is_set():
                    ray.get(self._quota.stop.remote("Ctrl-C"), timeout=ANSWER_SECONDS)
                state = ray.get(self._quota.state.remote(), timeout=ANSWER_SECONDS)
                session.report_to(self._meter, text=forecast(state, self._shard_size))
                if state["closed"] and not self._told:
                    self._told = True
                    terminal.note(
                        f"{state['closed']}: leasing no more, {state['in_flight']} shards in flight are finished"
                        + (" (Ctrl-C again stops at once)" if self._is_main else "")
                    )
                over_since = (over_since or time.monotonic()) if self.is_over(state) else None
            late = over_since is not None and time.monotonic() - over_since > PATIENCE_SECONDS
            if late and self._is_main and not self._done.is_set():
                # Again and again: what a signal raises inside a destructor is lost, and the driver would wait for ever.
                self._leave, over_since = True, time.monotonic()
                os.kill(os.getpid(), signal.SIGINT)


def forecast(state: dict[str, Any], shard_size: int) -> str:
    """ "123 in band, about 400 images to go, 1.20 USD so far, 0.60 more"."""
    spend: spending.Spend = state["spend"]
    parts = [f"{sum(row['accepted'] for row in state['targets'])} in band"]
    left = None if state["remaining"] is None else state["remaining"] * shard_size
    if left:
        parts.append(f"about {left} images to go")
    if spend.known is not None:
        parts.append(f"{spend.words()} so far")
        if left and spend.images:
            parts.append(f"about {spend.known / spend.images * left:.2f} more")
    if state["lost"]:
        parts.append(f"{state['lost']} shards lost")
    return ", ".join(parts)
