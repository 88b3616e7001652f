"""A short folder for Ray's own files (its sockets have a limit of 107 bytes), removed at the end."""

import shutil
import tempfile
from pathlib import Path

import pytest


@pytest.fixture
def short_ray_temp(monkeypatch):
    folder = Path(tempfile.mkdtemp(prefix="rb", dir="/tmp"))
    monkeypatch.setenv("RAYDR_RAY_TEMP", str(folder))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
