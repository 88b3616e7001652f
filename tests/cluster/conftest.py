"""One run of the debug recipe through the real entry point, shared by the tests that read it."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from raydr import cli


@pytest.fixture(scope="session")
def ray_temp():
    """Ray's own files, in a short path (its sockets have a limit of 107 bytes), removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="rd", dir="/tmp"))
    os.environ["RAYDR_RAY_TEMP"] = str(folder)
    yield folder
    os.environ.pop("RAYDR_RAY_TEMP")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, ray_temp):
    """OUT of `raydr run --recipe debug`, complete."""
    out = tmp_path_factory.mktemp("run") / "out"
    # Fine-tuning takes a thread a CPU, and the last bits of weights follow from that: two, as where tests compare.
    assert cli.main(["run", "--recipe", "debug", "--out", str(out), "--shape.num-cpus", "2"]) == 0
    return out
