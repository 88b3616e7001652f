"""Image codec. Photographs and samples are stored as lossless WebP or PNG bytes.

Lossless WebP, method 0, takes about a tenth of PNG level 6 per image and makes smaller files; the
pixels are equal either way.
"""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from raydr.errors import DamagedData

# Refuse decompression bombs: 200 megapixels is twice the largest fundus camera sold.
MAX_PIXELS = 200_000_000
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
# What a table may hold. Never all that Pillow knows: EPS starts an interpreter.
FORMATS = ("WEBP", "PNG", "JPEG")
# What Pillow's readers raise beside OSError for bytes that are no whole image: they reckon with whatever the file says.
BROKEN = (
    SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, EOFError,
    struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip


def encode(pixels: np.ndarray, codec: str = "webp") -> bytes:
    """Encode uint8 RGB pixels (H, W, 3) losslessly as "webp" or "png"."""
    assert (pixels.dtype, pixels.ndim, pixels.shape[-1]) == (np.uint8, 3, 3), (pixels.dtype, pixels.shape)
    buffer = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if codec == "webp":
        image.save(buffer, "WEBP", lossless=True, method=0, quality=0)
    else:
        image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def decode(data: bytes, px: int | None = None) -> np.ndarray:
    """Decode to uint8 RGB (H, W, 3); with `px`, resized to (px, px, 3) by a box-antialiased filter.

    Raises OSError for bytes that are no whole image, DamagedData for one of more than MAX_PIXELS.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise DamagedData(f"An image is no photograph: {error}") from None
    except BROKEN as error:
        raise OSError(f"broken image header: {error}") from None
    if image.width * image.height > MAX_PIXELS:  # Pillow only warns up to twice this
        raise DamagedData(f"An image is no photograph: {image.width} x {image.height} px")
    try:
        image = image.convert("RGB")
    except BROKEN as error:
        raise OSError(f"broken image: {error}") from None
    if px is not None and image.size != (px, px):
        image = image.resize((px, px), Image.Resampling.BICUBIC, reducing_gap=3.0)
    return np.asarray(image)


def jpeg(pixels: np.ndarray, px: int, quality: int = 80) -> bytes:
    """A thumbnail for the report: JPEG of `pixels` (H, W, 3) resized to px x px."""
    image = Image.fromarray(pixels)
    if image.size != (px, px):
        image = image.resize((px, px), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
