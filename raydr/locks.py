"""The driver lock of a run: flock on a local disk, a renewed object in a bucket."""

import contextlib
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from raydr.backends import Bucket, Folder
from raydr.errors import UserError

LOCK = "_lock"
# A bucket's lock is renewed this often, and free for the taking after so long without a renewal.
HEARTBEAT_SECONDS = 10.0
EXPIRY_SECONDS = 60.0


def hold(backend: Folder | Bucket, url: str, purpose: str, lost: threading.Event) -> Any:
    """Context manager that holds the lock of the run at `url`; UserError when another driver has it.

    `lost` is set if another driver took a bucket's lock over (after EXPIRY_SECONDS without a renewal).
    """
    return _hold_file(backend, url, purpose) if isinstance(backend, Folder) else _hold_object(backend, purpose, lost)


def _holder(purpose: str) -> dict[str, Any]:
    started = datetime.now(UTC).isoformat(timespec="seconds")
    return {"purpose": purpose, "host": socket.gethostname(), "pid": os.getpid(), "started": started}


def _refusal(url: str, body: bytes) -> UserError:
    try:
        holder = json.loads(body)
        who = f"`{holder['purpose']}` (host {holder['host']}, pid {holder['pid']}, since {holder['started']})"
    except (ValueError, KeyError, TypeError):  # caught between the lock and its text
        who = "another driver that has just started"
    return UserError(f"{url} is in use by {who}: wait for it or stop it, then run the same command again")


@contextlib.contextmanager
def _hold_file(backend: Folder, url: str, purpose: str) -> Iterator[None]:
    backend.root.mkdir(parents=True, exist_ok=True)
    with open(backend.root / LOCK, "a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise _refusal(url, file.read()) from None
        file.truncate(0)
        file.write(json.dumps(_holder(purpose)).encode())
        file.flush()
        # Closing the file, or dying, frees the lock. The file stays: unlinking it would let two
        # drivers hold locks on two files of one name.
        yield
        file.truncate(0)


@contextlib.contextmanager
def _hold_object(backend: Bucket, purpose: str, lost: threading.Event) -> Iterator[None]:
    mine = _holder(purpose) | {"token": secrets.token_hex(16)}
    version = _take(backend, mine)
    done = threading.Event()

    def renew() -> None:
        nonlocal version
        while not done.wait(HEARTBEAT_SECONDS):
            try:
                renewed = backend.put_if(LOCK, _beat(mine), version)
                # A lost answer to an earlier renewal leaves an old version here: look whose it is.
                if renewed is None:
                    body, found = backend.get_versioned(LOCK)
                    renewed = found if json.loads(body).get("token") == mine["token"] else None
            except Exception:
                # The network is down, or the object half-known: the next beat tries again. The lock
                # only saves money, so a driver that works goes on.
                continue
            if renewed is None:
                lost.set()
                return
            version = renewed

    thread = threading.Thread(target=renew, name="raydr-lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        if not lost.is_set():
            backend.delete(LOCK)


def _beat(mine: dict[str, Any]) -> bytes:
    return json.dumps(mine | {"beat": time.time()}).encode()


def _take(backend: Bucket, mine: dict[str, Any]) -> dict[str, str]:
    watched: dict[str, str] | None = None
    for _ in range(4):
        version = backend.put_if(LOCK, _beat(mine), "create")
        if version is not None:
            return version
        try:
            body, found = backend.get_versioned(LOCK)
        except FileNotFoundError:  # given back between the two requests
            continue
        holder = _parse(body)
        if holder.get("token") == mine["token"]:  # our own create, whose answer was lost and which was sent again
            return found
        if not _has_ended(holder):
            if _age_seconds(holder) < EXPIRY_SECONDS or watched not in (None, found):
                raise _refusal(backend.url, body)
            if watched is None:  # clocks that differ make a live lock look old: watch it for two heartbeats
                watched = found
                time.sleep(2 * HEARTBEAT_SECONDS)
                continue
        version = backend.put_if(LOCK, _beat(mine), found)
        if version is not None:
            return version
    raise UserError(f"{backend.url} changes hands all the time: other drivers want it too; try again later")


def _parse(body: bytes) -> dict[str, Any]:
    try:
        holder = json.loads(body)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _age_seconds(holder: dict[str, Any]) -> float:
    beat = holder.get("beat")
    return time.time() - beat if isinstance(beat, int | float) else float("inf")


def _has_ended(holder: dict[str, Any]) -> bool:
    """Whether the holder ran on this host and has ended, so that a resume need not wait for the expiry."""
    if holder.get("host") != socket.gethostname() or not isinstance(holder.get("pid"), int):
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it lives, as another user
        return False
    return False
