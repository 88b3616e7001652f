import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from raydr.errors import DamagedData
from raydr.fundus.phantom import render
from raydr.images import decode, encode, jpeg


@pytest.mark.parametrize("codec", ["webp", "png"])
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (64, 64)])
def test_both_codecs_are_lossless(codec, shape):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    again = decode(encode(pixels, codec))
    assert np.array_equal(again, pixels)
    assert again.dtype == np.uint8


def test_photographs_survive_and_shrink():
    pixels, _ = render(1, 1, 3, 64)
    webp, png = encode(pixels), encode(pixels, "png")
    assert np.array_equal(decode(webp), pixels)
    assert len(webp) < len(png) < pixels.nbytes
    assert (webp[:4], png[1:4]) == (b"RIFF", b"PNG")
    assert encode(pixels) == webp


def test_views_are_encoded_as_they_look():
    pixels, _ = render(1, 1, 3, 64)
    assert np.array_equal(decode(encode(pixels[:, ::-1])), pixels[:, ::-1])


@pytest.mark.parametrize("pixels", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)])
def test_only_8_bit_rgb_is_encoded(pixels):
    with pytest.raises(AssertionError):
        encode(pixels)


def test_grey_and_transparent_files_become_rgb():
    for mode in ("L", "RGBA", "P"):
        buffer = io.BytesIO()
        Image.new(mode, (4, 3), 7 if mode != "RGBA" else (7, 7, 7, 255)).save(buffer, "PNG")
        assert decode(buffer.getvalue()).shape == (3, 4, 3)


def test_resizing_averages():
    """Eight pixels to one: a plain image stays plain, a fine checkerboard becomes its mean."""
    board = np.zeros((64, 64, 3), np.uint8)
    board[::2, ::2] = board[1::2, 1::2] = 200
    small = decode(encode(board), px=8)
    assert small.shape == (8, 8, 3)
    assert np.abs(small.astype(int) - 100).max() <= 3
    assert np.array_equal(decode(encode(board), px=64), board)


@pytest.mark.parametrize("data", [b"", b"no image", encode(np.zeros((64, 64, 3), np.uint8), "png")[:60]])
def test_broken_bytes_are_an_error(data):
    with pytest.raises(OSError, match=r"identify|truncated"):
        decode(data)


@pytest.mark.parametrize("side", [15_000, 30_000])
def test_a_decompression_bomb_is_refused_unopened(side):
    """A PNG of a few bytes that claims 225 or 900 megapixels: Pillow itself would only warn of the first."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(DamagedData, match="no photograph"):
            decode(bomb)


def test_thumbnails_are_small_jpegs():
    pixels, _ = render(1, 1, 3, 64)
    data = jpeg(pixels, 32)
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.size) == ("JPEG", (32, 32))
    assert len(data) < 3000
    assert np.abs(np.asarray(Image.open(io.BytesIO(jpeg(pixels, 64, 95)))).astype(int) - pixels).mean() < 6


@pytest.mark.parametrize("kind", ["GIF", "PPM", "TIFF", "EPS"])
def test_a_table_holds_webp_png_and_jpeg_only(kind):
    """Pillow hands EPS to an interpreter: an "image" of a stranger's run must not get that far."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, kind)
    with pytest.raises(OSError, match="cannot identify"):
        decode(buffer.getvalue())
