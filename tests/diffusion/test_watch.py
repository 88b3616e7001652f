import copy
import dataclasses

import numpy as np
import pytest
import torch

from diffusion.small import CONFIG, trainer
from raydr.diffusion import watch
from raydr.identity import seed_of


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([1.0, 0.9, 0.8, 0.7], None),  # falls
        ([1.0, 0.9, 0.95, 0.96], (2, 0.9)),  # rises for two looks
        ([1.0, 0.9, 0.95], None),  # for one only
        ([1.0, 0.9, 0.95, 0.9], None),  # and comes back
        ([1.0, 0.9, 0.903, 0.904], None),  # by less than half a percent
        ([0.9, 0.95, 0.96], (1, 0.9)),  # from the first look on
        ([0.9, 0.95], None),
        ([], None),
    ],
)
def test_a_validation_loss_turns_when_it_stays_above_its_lowest(losses, expected):
    assert watch.turned(list(enumerate(losses, 1))) == expected


class Board:
    """A SummaryWriter that keeps what it is given."""

    def __init__(self):
        self.images, self.scalars = {}, {}

    def add_image(self, name, image, step, dataformats):
        assert (image.dtype, dataformats) == (np.uint8, "HWC")
        self.images[step] = image

    def add_scalar(self, name, value, step):
        self.scalars.setdefault(name.rsplit("/", 1)[1], []).append(step)


def test_grids_come_every_k_steps_from_the_same_noise(base):
    board = Board()
    config = dataclasses.replace(CONFIG, steps=4, validate_every=2, learning_rate=1e-12)
    run, events = trainer(base, config=config, writer=board)
    run.run()
    assert sorted(board.images) == [2, 4]
    assert board.images[2].shape == (CONFIG.px, watch.NUM_GRID * CONFIG.px, 3)
    # Nothing is learnt at this rate: what differed would be noise.
    assert np.abs(board.images[2].astype(int) - board.images[4]).max() <= 1
    assert board.scalars["instance"] == board.scalars["prior"] == board.scalars["loss"] == [1, 2, 3, 4]
    assert board.scalars["validation"] == [2, 4]
    assert [("validation" in event) for event in events] == [False, True, False, True]


def test_the_grid_of_a_joint_generator_shows_every_grade(base):
    board, seen = Board(), []

    def probe(images):
        seen.append(images)
        return ["DDR/7"] * len(images), np.ones(len(images)), np.zeros(len(images), bool)

    config = dataclasses.replace(CONFIG, steps=1, validate_every=1, kinds=("plain",))
    run, _ = trainer(base, config=config, grades=(1, 3), writer=board, probe=probe)
    run.run()
    px = CONFIG.px
    assert board.images[1].shape == (2 * px, watch.NUM_GRID * px, 3)
    rows = run.grid()
    assert (rows[1, 2] == board.images[1][px : 2 * px, 2 * px : 3 * px]).all()
    seeds = [seed_of("grid", 7, k) for k in range(watch.NUM_GRID)]
    assert (rows[1] == run.sample(3, seeds, 2, config.ecc_guidance, watch.NUM_GRID)).all()
    assert (rows[0] != rows[1]).any()
    assert (seen[0] == np.concatenate(list(rows))).all()


def gradients(run):
    return torch.cat([parameter.grad.flatten() for parameter in run.weights.parameters])


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True, "accumulation": 2, "batch_pairs": 1}])
def test_the_share_of_the_ecc_term_in_the_gradient_is_told_at_every_look(shared, options):
    """Against the difference of two gradients, with the term and without; it changes nothing that is learnt."""
    config = dataclasses.replace(CONFIG, max_grad_norm=1e9, validate_every=3, **options)
    run, events = trainer(copy.deepcopy(shared), config=config, kind="ecc")
    run.run(2)
    state = run.state()
    run.run(3)
    without, _ = trainer(copy.deepcopy(shared), config=dataclasses.replace(config, w_ecc=0.0), kind="ecc")
    without.restore(state)
    without.run(3)
    expected = (gradients(run) - gradients(without)).norm() / gradients(run).norm()
    assert events[-1]["ecc_grad_share"] == pytest.approx(float(expected), rel=1e-3)
    assert 0.05 < expected < 2
    run.run()
    told = [event["step"] for event in events if "ecc_grad_share" in event]
    assert told == [3, 5]  # the looks; the last step is one
    never, _ = trainer(copy.deepcopy(shared), config=dataclasses.replace(config, validate_every=0), kind="ecc")
    never.run()
    for name, value in never.state().weights.items():
        assert torch.equal(value, run.state().weights[name]), name


def test_grids_without_held_out_photographs(base):
    board = Board()
    run, events = trainer(
        base, config=dataclasses.replace(CONFIG, steps=3, validate_every=1), writer=board, validation=None
    )
    run.run()
    assert sorted(board.images) == [1, 2, 3]
    assert not any("validation" in event for event in events)


def test_the_probe_looks_at_every_grid_on_rank_0(base):
    seen = []

    def probe(images):
        seen.append(images)
        return (
            ["DDR/7", "DDR/8", "DDR/9", "DDR/6"],
            np.array([0.5, 0.2, 0.9, 0.4]),
            np.array([False, True, False, True]),
        )

    run, events = trainer(base, config=dataclasses.replace(CONFIG, steps=3, validate_every=1), probe=probe)
    run.run()
    assert [images.shape for images in seen] == [(watch.NUM_GRID, CONFIG.px, CONFIG.px, 3)] * 3
    for event in events:
        assert (event["nearest_image_id"], event["nearest_distance"], event["memorised"]) == ("DDR/8", 0.2, 2)


def test_a_copied_photograph_is_found_in_a_grid():
    """The gate of the grader's package as a probe: a phantom and its mirror among phantoms of other eyes."""
    from raydr.fundus.phantom import render
    from raydr.grading import nearest

    known = np.stack([render(1, index, index % 5, 64)[0] for index in range(40)])
    gate = nearest.fit(known, np.arange(40), [f"p/{k}" for k in range(40)], [None] * 40)
    fresh = np.stack([render(2, index, 1, 64)[0] for index in range(2)])
    grid = np.concatenate([known[7:8], known[9:10, :, ::-1], fresh])
    found = watch.probed(gate.check, grid)
    assert found["memorised"] == 2
    assert found["nearest_image_id"] in ("p/7", "p/9")
    assert found["nearest_distance"] == pytest.approx(0, abs=1e-3)


def test_a_turn_is_said_where_it_happens(base, monkeypatch):
    """Losses as they come from a run that overfits."""
    losses = iter([0.5, 0.4, 0.45, 0.46, 0.47])
    monkeypatch.setattr(watch, "validation_loss", lambda *_: next(losses))
    run, events = trainer(base, config=dataclasses.replace(CONFIG, validate_every=1))
    run.run()
    assert [event.get("turned_at") for event in events] == [None, None, None, 2, 2]
    assert run.state().validation == [(1, 0.5), (2, 0.4), (3, 0.45), (4, 0.46), (5, 0.47)]
