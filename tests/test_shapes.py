"""Shapes: presets, what may be typed over them, and what is refused."""

import pytest

from raydr import cli, shapes
from raydr.errors import UserError
from raydr.shapes import SHAPES, Shape


def test_a_field_changes_its_preset_and_nothing_else():
    shape, rest = cli.shape_of(
        "cluster", ["--shape.generators", "3", "--accepted", "5", "--shape.trial-gpus=1", "--shape.exclude_nodes", "a"]
    )
    assert (shape.generators, shape.trial_gpus, shape.exclude_nodes) == (3, 1.0, ("a",))
    assert shape.train_workers == SHAPES["cluster"].train_workers
    assert rest == ["--accepted", "5"]


def test_without_fields_the_preset_is_what_it_is():
    assert cli.shape_of("workstation", ["--band", "0.5", "1.0"]) == (
        SHAPES["workstation"],
        ["--band", "0.5", "1.0"],
    )
    with pytest.raises(UserError, match="There is no shape 'big': choose one of laptop, workstation, cluster"):
        cli.shape_of("big", [])


def test_options_go_over_the_shape():
    shape = shapes.with_options(Shape(exclude_nodes=("a",)), "auto", "L4", ["b", "c"])
    assert (shape.address, shape.accelerator, shape.exclude_nodes) == ("auto", "L4", ("a", "b", "c"))
    assert shapes.with_options(SHAPES["cluster"], None, None, None) == SHAPES["cluster"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("generators", 0), ("train_workers", 0), ("generator_cpus", 0.0), ("trial_cpus", -1.0),
        ("generator_gpus", 1.5), ("trial_gpus", -0.5), ("num_cpus", 0), ("max_failures", -1),
    ],
)  # fmt: skip
def test_numbers_that_ray_would_refuse_later_are_refused_now(field, value):
    with pytest.raises(UserError, match=f"shape.{field}"):
        Shape(**{field: value})


def test_two_ranks_of_one_gpu_are_refused_and_one_rank_a_fit_is_not():
    with pytest.raises(UserError, match=r"train_gpus 0\.5 .* NCCL refuses two on one"):
        Shape(train_gpus=0.5, train_workers=2)
    with pytest.raises(UserError, match="NCCL"):
        Shape(train_gpus=0.5, max_train_workers=2)
    assert Shape(train_gpus=0.5, train_side_by_side=2).train_gpus == 0.5


def test_an_unknown_field_ends_with_2(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", "--recipe", "debug", "--out", "/nowhere/x", "--shape.generatrs", "2"])
    assert ended.value.code == 2
    assert "generators" in capsys.readouterr().err
