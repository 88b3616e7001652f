import numpy as np
import pytest

from raydr.fundus.phantom import CAMERAS, render
from raydr.fundus.plausible import is_blank, is_fundus

PX = 64


def photograph():
    return render(1, 1, 2, PX)[0]


def filled(red, green, blue):
    """A circular field of one colour on black."""
    axis = (np.arange(PX) + 0.5) / PX * 2 - 1
    image = np.zeros((PX, PX, 3), np.uint8)
    image[np.hypot(axis[:, None], axis[None]) < 0.95] = red, green, blue
    return image


def half(value, share=0.5):
    """A reddish disc whose left part has one grey value; in the mean it is a fundus all the same."""
    image = filled(190, 100, 50)
    part = image[:, : int(PX * share)]
    part[part.any(axis=2)] = value
    return image


@pytest.mark.parametrize("camera", CAMERAS)
def test_phantoms_of_every_camera_and_grade_pass(camera):
    pixels = np.stack([render(3, index, index % 5, PX, camera)[0] for index in range(25)])
    assert is_fundus(pixels).all()
    assert not is_blank(pixels).any()


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_plain_image_is_blank_and_no_fundus(value):
    pixels = np.full((1, PX, PX, 3), value, np.uint8)
    assert is_blank(pixels).all()
    assert not is_fundus(pixels).any()


def test_faint_noise_is_blank_and_a_photograph_is_not():
    noise = np.random.default_rng(0).normal(100, 2, (PX, PX, 3)).clip(0, 255).astype(np.uint8)
    assert is_blank(np.stack([noise, photograph()])).tolist() == [True, False]


@pytest.mark.parametrize(
    "image",
    [
        filled(60, 90, 200),  # blue: channels swapped
        filled(90, 180, 60),  # green
        filled(14, 8, 4),  # unlit
        filled(255, 240, 235),  # over-exposed
        255 - photograph(),  # a negative: its corners are bright
        np.full((PX, PX, 3), (190, 100, 50), np.uint8),  # no dark surround
        np.roll(photograph(), PX // 2, axis=1),  # the field at the rim
        np.random.default_rng(0).integers(0, 256, (PX, PX, 3), dtype=np.uint8),
        half(0),  # half of the field was never drawn
        half(255),  # glare
    ],
    ids=["blue", "green", "unlit", "overexposed", "negative", "no surround", "off centre", "noise", "half", "glare"],
)
def test_what_no_camera_takes(image):
    assert not is_fundus(image[None]).any()


def test_a_plain_reddish_disc_passes():
    """The check is cheap: it knows colour and frame, not anatomy. The graders see the rest."""
    assert is_fundus(filled(190, 100, 50)[None]).all()


@pytest.mark.parametrize("value", [0, 255])
def test_a_dark_or_bright_corner_of_the_field_is_no_fault(value):
    assert is_fundus(half(value, 0.25)[None]).all()


def test_each_image_of_a_batch_is_judged_alone():
    batch = np.stack([photograph(), np.zeros((PX, PX, 3), np.uint8), photograph()])
    assert is_fundus(batch).tolist() == [True, False, True]
    assert is_blank(batch).tolist() == [False, True, False]
