"""What the comparison with other schemes says of rates that are given, without making an image."""

import math

import pytest

from raydr.bench import results, rig, synthesize, workload
from raydr.bench.synthesize import Rate
from raydr.shapes import Shape


def compared(tmp_path, ours, theirs):
    bench = rig.Rig(tmp_path, Shape(), workload.QUICK, results.Result({}))
    synthesize.versus(bench, "published scheme", "our steps", ours, theirs)
    return {peer.unit: peer for peer in bench.result.peers}


def test_accepted_images_are_compared_beside_images(tmp_path):
    ours, theirs = [Rate(8.0, 0.25), Rate(6.0, 0.25)], [Rate(2.0, 0.5), Rate(3.0, 0.5)]
    peers = compared(tmp_path, ours, theirs)
    assert peers["images"].ratios == pytest.approx((4.0, 2.0))
    assert peers["images"].speedup == pytest.approx(3.0)
    # 8 x .25 = 2 accepted images a second against 2 x .5 = 1.
    assert peers["accepted images"].ratios == pytest.approx((2.0, 1.0))
    assert "ours 25% of all, theirs 50%" in peers["accepted images"].note


@pytest.mark.parametrize("share", [0.0, math.nan])
def test_nothing_is_said_of_acceptance_where_nothing_was_accepted_or_scored(share, tmp_path):
    assert set(compared(tmp_path, [Rate(8.0, 0.25)], [Rate(2.0, share)])) == {"images"}
