"""TensorBoard's files of a generator, on a disk and in a bucket; no Ray is started."""

from pathlib import Path

import pytest
from s3_server import serve
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from raydr.cluster.board import Board
from raydr.storage import Run

FOLDER = "logs/tensorboard/plain-g1"


def steps(target, tmp_path):
    """The steps of the loss that somebody else reads from the run."""
    for key, _ in target.list(FOLDER):
        (tmp_path / Path(key).name).write_bytes(target.read(key))
    found = EventAccumulator(str(tmp_path)).Reload()
    return [scalar.step for scalar in found.Scalars("plain-g1/loss")] if found.Tags()["scalars"] else []


@pytest.fixture(params=["disk", "bucket"])
def target(request, tmp_path):
    if request.param == "disk":
        yield Run(str(tmp_path / "out"))
        return
    with serve():
        yield Run("s3://bucket/run")


def test_curves_are_there_after_each_checkpoint_and_a_restart_adds_a_file(target, tmp_path):
    (tmp_path / "read").mkdir()
    board = Board(target, "plain-g1")
    for step in (1, 2):
        board.writer.add_scalar("plain-g1/loss", 0.5, step)
    board.store()
    assert steps(target, tmp_path / "read") == [1, 2]
    board.writer.add_scalar("plain-g1/loss", 0.5, 3)
    board.store()
    assert len(target.list(FOLDER)) == 1
    assert steps(target, tmp_path / "read") == [1, 2, 3]
    again = Board(target, "plain-g1")  # the rank was killed and came back
    again.writer.add_scalar("plain-g1/loss", 0.5, 4)
    again.close()
    assert len(target.list(FOLDER)) == 2
    assert steps(target, tmp_path / "read") == [1, 2, 3, 4]
