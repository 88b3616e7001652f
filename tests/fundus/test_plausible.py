import numpy as np
import pytest
import skimage.data
from PIL import Image

from raydr.fundus.lesions import Canvas
from raydr.fundus.phantom import CAMERAS, render
from raydr.fundus.plausible import has_disc, is_blank, is_fundus

PX = 64


def photograph():
    return render(1, 1, 2, PX)[0]


def filled(red, green, blue, disc=True):
    """A circular field of one colour on black, with a pale optic disc."""
    axis = (np.arange(PX) + 0.5) / PX * 2 - 1
    image = np.zeros((PX, PX, 3), np.uint8)
    image[np.hypot(axis[:, None], axis[None]) < 0.95] = red, green, blue
    if disc:
        spot = np.hypot(axis[:, None], axis[None] - 0.4) < 0.13
        image[spot] = np.minimum(255, image[spot].astype(int) + np.array([40, 90, 70]))
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


def test_a_plain_reddish_field_with_an_optic_disc_passes():
    """The check is cheap: it knows colour, frame and disc, not anatomy. The graders see the rest."""
    assert is_fundus(filled(190, 100, 50)[None]).all()
    assert not is_fundus(filled(190, 100, 50, disc=False)[None]).any()
    tiny = filled(190, 100, 50, disc=False)[::4, ::4]
    assert is_fundus(tiny[None]).all(), "on 16 px a disc has two"


def no_disc(self, pen, x, y, d, fill, stretch=1.0):
    """In place of Canvas._disc: 0.92 is the optic disc's shape."""
    if stretch != 0.92:
        pen.ellipse((x - d / 2 * stretch, y - d / 2, x + d / 2 * stretch, y + d / 2), fill=fill)


def eyes(px, count, grades=(0, 1, 2, 3, 4)):
    return np.stack(
        [render(7, index, grades[index % len(grades)], px, name)[0] for name in CAMERAS for index in range(count)]
    )


@pytest.mark.parametrize(("px", "count"), [(32, 100), (64, 150), (256, 10)])
def test_an_optic_disc_is_seen_and_missed(px, count, monkeypatch):
    """At most 1 % of good phantoms are flagged; without their disc, and no bright lesion in its place, 90 % are."""
    assert has_disc(eyes(px, count)).mean() >= 0.99
    monkeypatch.setattr(Canvas, "_disc", no_disc)
    assert has_disc(eyes(px, count, grades=(0, 1))).mean() <= 0.1


def test_a_real_photograph_has_its_disc():
    retina = skimage.data.retina()
    assert is_fundus(retina[None]).all()
    small = np.asarray(Image.fromarray(retina).resize((512, 512)))
    assert is_fundus(small[None]).all()
    # The disc replaced by the retina opposite.
    without = small.copy()
    y, x = np.unravel_index(small[..., 1].astype(int).argmax(), small.shape[:2])
    part = slice(y - 50, y + 50), slice(x - 50, x + 50)
    without[part] = small[:, ::-1][part]
    assert not has_disc(without[None]).any()


@pytest.mark.parametrize("value", [0, 255])
def test_a_dark_or_bright_corner_of_the_field_is_no_fault(value):
    assert is_fundus(half(value, 0.25)[None]).all()


def test_each_image_of_a_batch_is_judged_alone():
    batch = np.stack([photograph(), np.zeros((PX, PX, 3), np.uint8), photograph()])
    assert is_fundus(batch).tolist() == [True, False, True]
    assert is_blank(batch).tolist() == [False, True, False]
