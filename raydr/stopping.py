"""`raydr stop`: a small object in the run's own storage, so it reaches a driver on any machine.

_stop    who asked and when; looked at by the running stage, cleared when a driver starts
"""

import os
import socket
from datetime import UTC, datetime
from typing import Any

from raydr.errors import MissingInput, Stopped
from raydr.storage import Run

STOP = "_stop"


def ask(run: Run) -> None:
    """Ask whoever works on `run` to lease no more, finish what is in flight and end."""
    asked = datetime.now(UTC).isoformat(timespec="seconds")
    run.replace_json(STOP, {"host": socket.gethostname(), "pid": os.getpid(), "asked": asked})


def asked(run: Run) -> str | None:
    """Who asked, in words; None while nobody has."""
    if not run.exists(STOP):
        return None
    try:
        note: dict[str, Any] = run.read_json(STOP)
    except MissingInput:  # cleared between the two
        return None
    return f"raydr stop on {note.get('host')} at {note.get('asked')}"


def obey(run: Run, stage: str) -> None:
    """Raise Stopped, before `stage` begins, where somebody has asked."""
    who = asked(run)
    if who:
        raise Stopped(f"Stopped ({who}) before {stage}; what is finished is kept")


def clear(*runs: Run) -> None:
    for run in runs:
        run.delete(STOP)
