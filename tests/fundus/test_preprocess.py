"""Decoding, cropping, hashing: on a real photograph (scikit-image's, in its wheel) and on files that are none."""

import io
import math
import pickle
import struct
import time
import zlib

import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageDraw
from scipy import fft

from fundus.trees import drawing, photograph
from raydr.fundus.field_of_view import box, crop_circle, crop_paper, find_circle
from raydr.fundus.phash import ORIENTATIONS, hamming, laid, mirrored, phash, turned
from raydr.fundus.preprocess import Unusable, decode_photograph, prepare, prepare_row
from raydr.fundus.readers.rows import Row
from raydr.images import decode
from raydr.schema import REAL

# The field of view of skimage.data.retina(), measured by hand: the half-maximum crossings of row 703 are at x = 9.7 and
# 1399.5, those of column 704 at y = 8.4 and 1398.3.
X, Y, DIAMETER = 704.6, 703.4, 1389.9


@pytest.fixture(scope="module")
def retina() -> np.ndarray:
    return skimage.data.retina()


def saved(image: Image.Image, form: str = "PNG", **kwargs) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **kwargs)
    return buffer.getvalue()


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


DEEP = (np.hypot(*(np.mgrid[:100, :100] - 50)) < 45) * np.linspace(0.3, 1, 100)


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_deep_grey_is_scaled_by_its_own_depth(bits: int) -> None:
    values = (DEEP * (2**bits - 1)).astype(np.uint16)
    for form in ("PNG", "TIFF"):
        pixels = decode_photograph(saved(Image.fromarray(values), form))
        assert pixels.shape == (100, 100, 3)
        assert np.abs(pixels[..., 0] - DEEP * 255).max() <= 1


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_sixteen_bit_colour_png() -> None:
    """Pillow cannot write one, so the file is put together by hand."""
    rows = np.zeros((100, 100, 3), ">u2")
    rows[..., 0] = (DEEP * 65535).astype(np.uint16)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", 100, 100, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    pixels = decode_photograph(data)
    assert np.abs(pixels[..., 0] - DEEP * 255).max() <= 1
    assert pixels[..., 1:].max() == 0


def test_every_mode_becomes_rgb() -> None:
    eye = drawing(1)
    reference = np.asarray(eye).astype(int)
    grey = np.asarray(eye.convert("L").convert("RGB"))
    clear = eye.convert("RGBA")
    clear.putalpha(Image.fromarray((reference.max(axis=2) > 0).astype(np.uint8) * 255))
    white = Image.new("RGBA", eye.size, (255, 255, 255, 0))
    white.alpha_composite(clear)
    cases = {
        "CMYK JPEG": (saved(eye.convert("CMYK"), "JPEG", quality=98), reference, 4),
        "grey JPEG": (saved(eye.convert("L"), "JPEG", quality=98), grey, 3),
        "palette PNG": (saved(eye.quantize(256)), reference, 4),
        "GIF": (saved(eye.quantize(256), "GIF"), reference, 4),
        "transparent PNG": (saved(clear), reference, 0),
        "grey with alpha": (saved(clear.convert("LA")), grey, 1),
        "BMP": (saved(eye, "BMP"), reference, 0),
        "TIFF, LZW": (saved(eye, "TIFF", compression="tiff_lzw"), reference, 0),
        "lossless WebP": (saved(eye, "WEBP", lossless=True), reference, 0),
    }
    for name, (data, expected, tolerance) in cases.items():
        pixels = decode_photograph(data, 64)
        assert pixels.shape == reference.shape, name
        assert pixels.dtype == np.uint8
        assert np.abs(pixels.astype(int) - expected).mean() <= tolerance, name


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    data = saved(drawing(2), "JPEG", quality=95, exif=exif)
    pixels = decode_photograph(data)
    upright = np.asarray(drawing(2).rotate(-90, expand=True)).astype(int)
    assert pixels.shape == (160, 120, 3)
    assert np.abs(pixels - upright).mean() < 4
    prepared = prepare(data, 64)
    assert (prepared.source_width, prepared.source_height) == (120, 160)


def bomb() -> bytes:
    """A PNG header of 60,000 x 60,000 px in 57 bytes."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(b"IHDR" + header))
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + b"IHDR"
        + header
        + crc
        + struct.pack(">I", 0)
        + b"IEND"
        + b"\0" * 4
    )


def speck() -> Image.Image:
    image = Image.new("RGB", (400, 400))
    ImageDraw.Draw(image).ellipse((190, 190, 230, 230), fill=(200, 100, 50))
    return image


JPEG = photograph(3, width=640, height=480)
UNUSABLE = {
    "empty": (b"", "empty file"),
    "text": (b"Once upon a time there was a retina. " * 40, "not an image"),
    "html": (b"<html><body>Please log in to download</body></html>", "not an image"),
    "zeros": (bytes(5000), "not an image"),
    "script": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n", "not an image"),
    "half a JPEG": (JPEG[: len(JPEG) // 2], "truncated"),
    "a tenth of a JPEG": (JPEG[: len(JPEG) // 10], "truncated"),
    "half a PNG": (saved(drawing(3))[:1200], "truncated"),
    "half a TIFF": (saved(drawing(3), "TIFF")[:9000], "truncated"),
    "bomb": (bomb(), "absurd size"),
    "over 64 megapixels, not to be scaled": (saved(Image.new("L", (8001, 8001), 90), compress_level=1), "absurd size"),
    "thumbnail": (saved(drawing(3).resize((31, 24))), "absurd size"),
    "strip": (saved(drawing(3).resize((1000, 200))), "absurd size"),
    "black": (saved(Image.new("RGB", (300, 200)), "JPEG"), "no visible fundus"),
    "nearly black": (saved(Image.new("RGB", (300, 200), (5, 4, 3)), "JPEG"), "no visible fundus"),
    "white": (saved(Image.new("RGB", (300, 200), (255, 255, 255))), "no visible fundus"),
    "fully transparent": (saved(Image.new("RGBA", (300, 200), (255, 255, 255, 0))), "no visible fundus"),
    "speck": (saved(speck()), "no visible fundus"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_files_say_why(name: str) -> None:
    data, reason = UNUSABLE[name]
    with pytest.raises(Unusable) as caught:
        prepare(data, 64)
    assert caught.value.reason == reason
    assert caught.value.detail
    again = pickle.loads(pickle.dumps(caught.value))  # crosses process borders
    assert (again.reason, again.detail) == (caught.value.reason, caught.value.detail)


def test_a_large_jpeg_is_scaled_where_a_large_png_is_refused() -> None:
    """72 megapixels: the decoder reduces them by 8, so that nobody holds them."""
    data = saved(drawing(3, width=9000, height=8000), "JPEG", quality=60)
    assert prepare(data, 64).source_width == 9000


def test_any_damage_ends_in_a_photograph_or_in_unusable() -> None:
    """400 files with random bytes overwritten or cut: no other exception, whatever the decoder trips over."""
    rng = np.random.default_rng(0)
    originals = [
        photograph(4),
        saved(drawing(4)),
        saved(drawing(4), "TIFF"),
        saved(drawing(4), "WEBP"),
        saved(drawing(4), "GIF"),
    ]
    outcomes = set()
    for trial in range(400):
        data = bytearray(originals[trial % len(originals)])
        for position in rng.integers(0, len(data), rng.integers(1, 20)):
            data[position] = rng.integers(256)
        if trial % 3 == 0:
            data = data[: rng.integers(1, len(data))]
        try:
            assert prepare(bytes(data), 32).pixels.shape == (32, 32, 3)
            outcomes.add("photograph")
        except Unusable as error:
            outcomes.add(error.reason)
    assert {"photograph", "truncated", "not an image"} <= outcomes


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


def test_phash_of_the_mirror_and_of_the_turned_picture_follow_from_the_hash(retina: np.ndarray) -> None:
    for seed in range(20):
        pixels = prepare(photograph(seed), 96).pixels
        assert mirrored(phash(pixels)) == phash(pixels[:, ::-1])
        assert mirrored(mirrored(phash(pixels))) == phash(pixels)
        assert turned(phash(pixels)) == phash(pixels[::-1, ::-1])
        for is_mirrored, is_turned, mask in ORIENTATIONS:
            other = laid(pixels.transpose(2, 0, 1), is_mirrored, is_turned).transpose(1, 2, 0)
            assert int(phash(pixels), 16) ^ mask == int(phash(other), 16)
    assert hamming(phash(retina), phash(retina[:, ::-1])) > 16
    assert hamming(phash(retina), phash(retina[::-1, ::-1])) > 16


def test_phash_survives_copying_and_tells_photographs_apart(retina: np.ndarray) -> None:
    image = Image.fromarray(retina)
    reference = phash(prepare(saved(image), 512).pixels)
    copies = {
        "JPEG 30": saved(image, "JPEG", quality=30),
        "a fifth": saved(image.resize((280, 280))),
        "half as bright": saved(image.point(lambda v: v * 0.5)),
        "3 % cut off": saved(Image.fromarray(retina[40:-40, 40:-40])),
    }
    for name, data in copies.items():
        assert hamming(reference, phash(prepare(data, 512).pixels)) <= 6, name
    values = [phash(prepare(photograph(seed), 96).pixels) for seed in range(40)]
    distances = [hamming(a, b) for i, a in enumerate(values) for b in values[:i]]
    assert min(distances) > 6
    assert 28 < np.mean(distances) < 36  # independent bits would differ in 32


def test_hamming_by_hand() -> None:
    assert hamming("0000000000000000", "ffffffffffffffff") == 64
    assert hamming("8000000000000001", "0000000000000003") == 2


def test_phash_bits_are_the_signs_of_the_dct() -> None:
    """A picture made of one cosine sets exactly the bit of its frequency (row 2, column 3 of frequencies 1-8)."""
    coefficients = np.zeros((64, 64))
    coefficients[3, 4] = 1
    wave = fft.idctn(coefficients, norm="ortho")
    pixels = np.clip(128 + 100 * wave / np.abs(wave).max(), 0, 255).astype(np.uint8)
    bits = int(phash(np.stack([pixels] * 3, -1)), 16)
    inverse = int(phash(np.stack([255 - pixels] * 3, -1)), 16)
    position = 63 - (2 * 8 + 3)
    assert bits >> position & 1 == 1
    assert inverse >> position & 1 == 0
