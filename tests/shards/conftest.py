"""A run without shards, one with the whole table, and the table as an undisturbed run leaves it."""

from pathlib import Path

import pyarrow as pa
import pytest

from raydr import shards
from raydr.schema import SCORES
from raydr.storage import Run

from .tables import commit_all


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(str(tmp_path / "out"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    run = Run(str(tmp_path_factory.mktemp("undisturbed")))
    commit_all(run)
    return shards.read(run, "scores", SCORES)


@pytest.fixture
def committed(run: Run) -> Run:
    commit_all(run)
    return run
