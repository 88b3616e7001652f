"""The field of view, cropping and scaling: on a real photograph (scikit-image's, in its wheel) and on drawn ones."""

import io
import math
import time

import numpy as np
import pytest
import skimage.data
from PIL import Image

from fundus.trees import photograph, saved
from raydr.fundus.field_of_view import box, crop_circle, crop_paper, find_circle
from raydr.fundus.phash import phash
from raydr.fundus.preprocess import decode_photograph, prepare, prepare_row
from raydr.fundus.readers.rows import Row
from raydr.images import decode
from raydr.schema import REAL

# The field of view of skimage.data.retina(), measured by hand: the half-maximum crossings of row 703 are at x = 9.7 and
# 1399.5, those of column 704 at y = 8.4 and 1398.3.
X, Y, DIAMETER = 704.6, 703.4, 1389.9


def moved(pixels: np.ndarray) -> dict[str, tuple[np.ndarray, float, float]]:
    """Variants of the photograph, each with the true centre of its circle."""
    image = Image.fromarray(pixels)
    height, width = pixels.shape[:2]
    y, x = np.mgrid[:height, :width] + 0.5
    padded = np.zeros((2000, 3000, 3), np.uint8)
    padded[300 : 300 + height, 1200 : 1200 + width] = pixels
    disc = np.hypot(x - X, y - Y) <= DIAMETER / 2
    shadow = np.clip((x - X) / DIAMETER + 0.55, 0.02, 1)[..., None]
    noise = np.random.default_rng(0).normal(12, 4, pixels.shape)
    variants = {
        "as it is": (pixels, X, Y),
        "padded": (padded, X + 1200, Y + 300),
        "shifted out of the frame": (pixels[:, 200:], X - 200, Y),
        "cut at top and bottom": (pixels[150:-150], X, Y - 150),
        "cut on four sides": (pixels[120:-120, 120:-120], X - 120, Y - 120),
        "half as bright": ((pixels * 0.5).astype(np.uint8), X, Y),
        "a tenth as bright": ((pixels * 0.1).astype(np.uint8), X, Y),
        "without notch": (pixels * disc[..., None], X, Y),
        "shadowed rim": ((pixels * shadow).astype(np.uint8), X, Y),
        "grey and noisy border": (np.clip(pixels + noise, 0, 255).astype(np.uint8), X, Y),
        "JPEG, quality 20": (np.asarray(Image.open(io.BytesIO(saved(image, "JPEG", quality=20)))), X, Y),
    }
    for degrees in (17, 90, 133):
        turn = math.radians(degrees)
        dx, dy = X - width / 2, Y - height / 2
        turned = np.asarray(image.rotate(degrees, Image.Resampling.BICUBIC))
        centre = (
            width / 2 + dx * math.cos(turn) + dy * math.sin(turn),
            height / 2 - dx * math.sin(turn) + dy * math.cos(turn),
        )
        variants[f"turned by {degrees} degrees"] = (turned, *centre)
    return variants


def test_circle_within_one_percent_on_a_real_photograph(retina: np.ndarray) -> None:
    for name, (pixels, x, y) in moved(retina).items():
        circle = find_circle(pixels)
        assert circle is not None, name
        errors = np.abs([circle.x - x, circle.y - y, circle.diameter - DIAMETER]) / DIAMETER
        assert errors.max() < 0.01, (name, errors)


@pytest.mark.parametrize("px", [64, 128, 512, 1500])
def test_circle_on_drawn_discs_at_any_size(px: int) -> None:
    """Known centre and radius; at 64 px one percent is 0.6 px, so the fit must work between pixels."""
    x, y, radius = 0.53 * px, 0.48 * px, 0.42 * px
    row, column = np.mgrid[:px, :px] + 0.5
    inside = np.clip(radius - np.hypot(column - x, row - y) + 0.5, 0, 1)  # one px of antialiasing
    pixels = (inside[..., None] * np.array([180, 90, 40])).astype(np.uint8)
    circle = find_circle(pixels)
    assert circle is not None
    assert np.allclose([circle.x, circle.y, circle.diameter], [x, y, 2 * radius], atol=0.01 * 2 * radius)


def test_a_photograph_without_border_is_never_cropped(retina: np.ndarray) -> None:
    whole = {
        "macula": retina[300:1100, 300:1100],
        "dark macula": (retina[300:1100, 300:1100] * 0.1).astype(np.uint8),
        "optic disc": retina[450:950, 150:650],
        "dark optic disc": (retina[450:950, 150:650] * 0.2).astype(np.uint8),
        "inscribed square": retina[220:1190, 220:1190],
        "microaneurysms": np.stack([skimage.data.microaneurysms()] * 3, -1),
        "white": np.full((400, 500, 3), 255, np.uint8),
        "black": np.zeros((400, 500, 3), np.uint8),
        "noise": np.random.default_rng(0).integers(0, 255, (400, 500, 3), dtype=np.uint8),
    }
    shade = np.linspace(1, 0.15, 970)[None, :, None]
    whole["unevenly lit"] = (retina[220:1190, 220:1190] * shade).astype(np.uint8)
    for name, pixels in whole.items():
        height, width = pixels.shape[:2]
        assert crop_circle(pixels) == box(0, 0, width, height), name


def test_circle_crop_keeps_a_square_field_in_black_bars(retina: np.ndarray) -> None:
    """No rim to fit: the lit rectangle is kept to within the 3 px that one reduced pixel stands for."""
    framed = np.zeros((1200, 1000, 3), np.uint8)
    framed[200:1000] = retina[300:1100, 200:1200]
    crop = crop_circle(framed)
    assert abs(crop.top - 200) <= 6
    assert abs(crop.bottom - 1000) <= 6
    assert (crop.left, crop.right) == (0, 1000)


def test_crop_paper_by_hand() -> None:
    """100 x 200, grey 100 in rows 20-79 and columns 50-149, grey 5 (below 10 % of the mean) elsewhere."""
    pixels = np.full((100, 200, 3), 5, np.uint8)
    pixels[20:80, 50:150] = 100
    # Mean non-zero grey 33.5, threshold 3.35: the 5s pass. Zero the background and they do not.
    assert crop_paper(pixels) == box(0, 0, 200, 100)
    pixels[pixels == 5] = 0
    assert crop_paper(pixels) == box(50, 20, 150, 80)
    # 2 of 100 pixels lit are not more than 2 %, 3 are; rows need more than 4 of 200.
    pixels[40:42, 10] = 100
    pixels[40:43, 30] = 100
    assert crop_paper(pixels) == box(30, 20, 150, 80)
    # All black: nothing passes, nothing is cropped.
    assert crop_paper(np.zeros((50, 60, 3), np.uint8)) == box(0, 0, 60, 50)


def test_crop_paper_weighs_red_more_than_blue() -> None:
    """Blue 80 is grey 9, red 80 is grey 24, the threshold about 13: swapped weights would keep the blue side."""
    pixels = np.zeros((100, 100, 3), np.uint8)
    pixels[:, 30:70] = 255
    pixels[:, 10:30, 2] = 80
    pixels[:, 70:90, 0] = 80
    crop = crop_paper(pixels)
    assert (crop.left, crop.right) == (30, 90)


@pytest.mark.parametrize("crop", ["circle", "paper"])
def test_prepare_centres_pads_and_resizes(retina: np.ndarray, crop: str) -> None:
    prepared = prepare(saved(Image.fromarray(retina[150:-150]), "JPEG", quality=95), 256, crop)
    assert prepared.pixels.shape == (256, 256, 3)
    assert prepared.pixels.dtype == np.uint8
    assert (prepared.source_width, prepared.source_height) == (1411, 1111)
    rows = np.flatnonzero(prepared.pixels.max(axis=(1, 2)) > 20)
    columns = np.flatnonzero(prepared.pixels.max(axis=(0, 2)) > 20)
    # 1111 of 1390 rows are there: 205 of 256, with 25 or 26 black ones above and below.
    assert rows[0] in (25, 26)
    assert rows[-1] in (229, 230)
    assert columns[0] <= 1
    assert columns[-1] >= 254


def test_circle_crop_keeps_a_cut_eye_concentric(retina: np.ndarray) -> None:
    """Cut at the bottom only: the optic disc stays where it is in the whole eye, the paper's padding moves it."""
    whole = prepare(saved(Image.fromarray(retina)), 256).pixels.astype(int)
    data = saved(Image.fromarray(retina[:1100]))
    near, moved_down = prepare(data, 256).pixels.astype(int), prepare(data, 256, "paper").pixels.astype(int)
    assert np.abs(near[:190] - whole[:190]).mean() < 4
    assert np.abs(moved_down[:190] - whole[:190]).mean() > 15


def big_jpeg(pixels: np.ndarray, diameter: int) -> bytes:
    image = Image.new("RGB", (4000, 3000))
    eye = Image.fromarray(pixels).resize((diameter, diameter), Image.Resampling.BICUBIC)
    image.paste(eye, ((4000 - diameter) // 2, (3000 - diameter) // 2))
    return saved(image, "JPEG", quality=92)


def test_decoder_scaling_is_twice_as_fast_and_keeps_the_picture(retina: np.ndarray) -> None:
    data = big_jpeg(retina, 2960)

    def scaled() -> np.ndarray:
        image = Image.fromarray(decode_photograph(data, 1024))
        return np.asarray(image.resize((1024, 1024), Image.Resampling.BICUBIC))

    def full() -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((1024, 1024), Image.Resampling.BICUBIC))

    seconds: dict = {scaled: [], full: []}
    for _ in range(5):  # interleaved, so that a busy neighbour slows both
        for run, times in seconds.items():
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
    assert min(seconds[full]) > 2 * min(seconds[scaled])
    assert np.abs(scaled().astype(int) - full()).mean() < 1.5
    assert decode_photograph(data, 1024).shape == (1500, 2000, 3)


def test_decoder_scaling_never_costs_resolution(retina: np.ndarray) -> None:
    """The eye fills 1400 of 4000 px: half-size decoding would leave 690 px for a picture of 1024."""
    data = big_jpeg(retina, 1400)
    sharp = prepare(data, 1024).pixels.astype(int)
    reference = prepare(saved(Image.fromarray(decode_photograph(data))), 1024).pixels
    assert np.abs(sharp - reference).mean() < 0.5


def test_prepare_row_fits_the_schema() -> None:
    row = Row("a/b.jpg", "DDR/b", "DDR", "train", None, 3, True, "coded", 123)
    prepared = prepare_row(row, photograph(5), 96, "circle")
    assert list(prepared) == REAL.names
    pixels = decode(prepared["image"])
    assert pixels.shape == (96, 96, 3)
    assert np.array_equal(pixels, prepare(photograph(5), 96).pixels)  # lossless
    assert (prepared["source_width"], prepared["source_height"], prepared["grade"]) == (160, 120, 3)
    assert prepared["phash"] == phash(pixels)
    assert prepare_row(row, photograph(5), 96)["sha256"] == prepared["sha256"]
