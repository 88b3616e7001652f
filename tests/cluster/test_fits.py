"""How generators are shared out among fits, and how many fits there are. No Ray is started."""

from dataclasses import replace

import pytest

from raydr.cluster.fits import apart, num_fits
from raydr.cluster.packing import Node
from raydr.errors import UserError
from raydr.lineage import Generator
from raydr.shapes import Shape, named

WANTED = [
    Generator(f"{kind}-g{grade}", kind, (grade,), 1, f"plain-g{grade}")
    for kind in ("plain", "ecc", "ecc_w0")
    for grade in (0, 1, 2, 3, 4)
]


def ids(parts):
    return [[generator.generator_id for generator in part] for part in parts]


def test_what_branches_from_one_plain_run_stays_in_its_fit():
    for count in (1, 2, 3, 5, 9):
        parts = apart(WANTED, count)
        assert len(parts) == min(count, 5)
        assert sorted(name for part in ids(parts) for name in part) == sorted(
            generator.generator_id for generator in WANTED
        )
        for part in parts:
            homes = {generator.branch_id for generator in part}
            assert len(part) == 3 * len(homes)
            for home in homes:  # the plain one first: the others begin with its checkpoint
                assert next(g for g in part if g.branch_id == home).kind == "plain"


def test_fits_are_of_about_equal_length():
    left = [generator for generator in WANTED if generator.generator_id not in ("plain-g0", "ecc-g0", "plain-g1")]
    assert sorted(len(part) for part in apart(left, 2)) == [6, 6]


@pytest.mark.parametrize(
    ("shape", "nodes", "expected"),
    [
        (Shape(), [Node("a", 8)], 1),  # one machine: as before
        (Shape(train_side_by_side=0), [Node("a", 8)], 8),
        (Shape(train_side_by_side=0, train_workers=3), [Node("a", 4), Node("b", 4)], 2),
        (Shape(train_side_by_side=5, train_workers=3), [Node("a", 4), Node("b", 4)], 2),
        (Shape(train_side_by_side=2), [Node("a", 8)], 2),
        (Shape(train_side_by_side=0, train_gpus=1), [Node("head", 8), Node("a", 8, 4), Node("b", 1, 4)], 5),
        (Shape(train_side_by_side=0, train_gpus=1, accelerator="L4"), [Node("a", 8, 4, accelerator="H100")], 1),
        (named("cluster"), [Node("head", 0), *(Node(str(k), 8, 4) for k in range(3))], 3),
        (named("cluster"), [Node("head", 0)], 1),  # the autoscaler has yet to bring the first
    ],
)
def test_as_many_fits_as_the_cluster_holds(shape, nodes, expected):
    assert num_fits(shape, nodes) == expected


def test_no_negative_number_of_fits():
    with pytest.raises(UserError, match=r"shape\.train_side_by_side must be at least 1, or 0"):
        replace(Shape(), train_side_by_side=-1)
