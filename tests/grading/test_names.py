"""File names tell the source, and the source the grade (DDR's time stamps, FGADR's _3): no grader may see them."""

import numpy as np
import torch

from grading.blobs import blobs
from raydr.config import Grader, Member
from raydr.grading.members import train_member

IMAGES, GRADES = blobs(60)
TELLING = [f"DDR/{'20170413' if grade == 0 else '007-'}{row:04d}_{grade}" for row, grade in enumerate(GRADES)]
SILENT = [f"X/{row}" for row in range(60)]


def test_a_grader_is_the_same_whatever_its_photographs_are_called() -> None:
    member, digests = (
        Member(Grader(backbone="test_resnet", px=32, steps=3, batch=10)),
        [f"{row:064x}" for row in range(60)],
    )
    (told, meta), (blind, other) = (
        train_member("m", member, 5, IMAGES, np.arange(60), GRADES, names, digests, seed=7, num_threads=1)
        for names in (TELLING, SILENT)
    )
    for key, value in told.model.state_dict().items():
        assert torch.equal(value, blind.model.state_dict()[key]), key
    assert meta.temperature == other.temperature
    # Names are kept for one purpose: to refuse a grader that saw what it judges.
    assert not np.array_equal(meta.trained_on, other.trained_on)
