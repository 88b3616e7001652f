"""Poison rows are found by halving; what is no row's fault is said at once."""

import pyarrow as pa
import pytest
import torch

from raydr.cluster.watched import isolate
from raydr.errors import UserError


def rows(part):
    return pa.table({"index": list(part)})


def test_rows_that_raise_are_found_and_the_others_are_kept():
    def make(part):
        if {3, 6} & set(part):
            raise ValueError("poison")
        return rows(part)

    parts, poison = isolate(make, range(8))
    assert pa.concat_tables(parts)["index"].to_pylist() == [0, 1, 2, 4, 5, 7]
    assert poison == [(3, "ValueError: poison"), (6, "ValueError: poison")]


def test_a_batch_too_large_for_the_gpu_is_not_halved_in_silence():
    asked = []

    def make(part):
        asked.append(len(part))
        if len(part) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 GiB.\nMore")
        return rows(part)

    with pytest.raises(UserError, match=r"Tried to allocate 8.00 GiB.*lower synthesize.sampler.batch"):
        isolate(make, range(8))
    assert asked == [8]
