"""A run that is not on the disk yet."""

from pathlib import Path

import pytest

from raydr.storage import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(str(tmp_path / "out"))
