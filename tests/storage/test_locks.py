"""One driver a run: the second is told who the first is, and a dead one holds nothing."""

import json
import os
import socket

import pytest

from raydr.errors import UserError
from raydr.storage import Run

from .processes import start

HOLD = (
    "import sys; from raydr.storage import Run\n"
    "with Run(sys.argv[1]).lock('raydr synthesize'): print('held', flush=True); sys.stdin.readline()"
)


def test_the_second_driver_is_told_who_the_first_is(run: Run) -> None:
    first = start(HOLD, run.url)
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    with pytest.raises(UserError) as caught, run.lock("raydr sweep"):
        pytest.fail("two drivers hold the lock")
    holder = json.loads(run.read("_lock"))
    for word in ("raydr synthesize", socket.gethostname(), f"pid {first.pid}", holder["started"], run.url):
        assert word in str(caught.value)
    with run.lock("raydr sweep", force=True):
        pass
    first.communicate("\n")
    with run.lock("raydr sweep") as lost:
        assert not lost.is_set()
        assert json.loads(run.read("_lock"))["pid"] == os.getpid()


def test_a_killed_driver_frees_its_lock_at_once(run: Run) -> None:
    first = start(HOLD, run.url)
    assert first.stdout is not None
    first.stdout.readline()
    first.kill()
    first.wait()
    with run.lock("again"):
        pass


def test_an_error_under_the_lock_stays_what_it_is(run: Run) -> None:
    with pytest.raises(FileNotFoundError, match="mine"), run.lock("x"):
        raise FileNotFoundError("mine")
    with run.lock("free again"):
        pass
