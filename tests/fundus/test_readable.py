"""Files of many formats, depths and modes become RGB, and those that are no photograph say why."""

import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageDraw

from fundus.trees import drawing, photograph, saved
from raydr.fundus.preprocess import Unusable, decode_photograph, prepare

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
