"""File bytes -> the stored photograph: decode, crop to the field of view, pad to a square, resize, hash.

Every function is pure and runs anywhere; `prepare_row` is what an ingest worker calls once a file. A file that
cannot become a photograph raises `Unusable` with the reason that goes into the quarantine.
"""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from raydr.fundus.field_of_view import Crop, border, crop_circle, crop_paper
from raydr.fundus.phash import hamming, mirrored, phash
from raydr.fundus.readers.rows import Row
from raydr.identity import sha256
from raydr.images import BROKEN, MAX_PIXELS, encode

__all__ = ["Prepared", "Unusable", "decode_photograph", "hamming", "mirrored", "phash", "prepare", "prepare_row"]

EMPTY = "empty file"
NOT_AN_IMAGE = "not an image"
TRUNCATED = "truncated"
ABSURD_SIZE = "absurd size"
NO_FUNDUS = "no visible fundus"

# Formats that photographs come in ("JPEG" includes cameras' MPO). Not EPS and its like, which start an interpreter.
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF", "PPM", "JPEG2000")
SMALLEST_SIDE = 32
# What one picture may have once its decoder has scaled it: at up to 18 bytes a pixel (an uncompressed TIFF) a worker
# stays under 1.5 GiB. Only JPEG scales, so this is the limit of a PNG or TIFF file.
MAX_DECODED = 64_000_000
LARGEST_ASPECT = 4.0
CROPS = {"circle": crop_circle, "paper": crop_paper}


class Unusable(ValueError):
    """A file that holds no usable photograph; `reason` is one of the few names above, `detail` is for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


@dataclass(frozen=True)
class Prepared:
    """A photograph as it is stored, and what it came from."""

    pixels: np.ndarray  # uint8 (px, px, 3)
    source_width: int  # of the file, px
    source_height: int
    source_border: list[float]  # as `field_of_view.border` has it of the decoded file


def open_photograph(data: bytes) -> Image.Image:
    """Header of `data`, pixels not decoded yet. Raises Unusable."""
    if not data:
        raise Unusable(EMPTY, "0 bytes")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise Unusable(NOT_AN_IMAGE, f"{len(data)} bytes starting with {data[:8]!r}") from None
    except Image.DecompressionBombError as error:
        raise Unusable(ABSURD_SIZE, str(error)) from None
    except (OSError, *BROKEN) as error:
        raise Unusable(TRUNCATED, f"broken header: {error}") from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise Unusable(ABSURD_SIZE, f"{width} x {height} px is over {MAX_PIXELS // 10**6} megapixels")
    if min(width, height) < SMALLEST_SIDE or max(width, height) > LARGEST_ASPECT * min(width, height):
        raise Unusable(ABSURD_SIZE, f"{width} x {height} px")
    return image


def rgb(image: Image.Image) -> Image.Image:
    """Any mode to 8-bit RGB: deep grey is scaled by its own bit depth, transparency lies on black."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith(("I", "F")):
        return eight_bits(np.asarray(image)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def eight_bits(values: np.ndarray) -> Image.Image:
    """Deep grey (H, W) as an 8-bit picture."""
    largest = float(np.nan_to_num(np.nanmax(values, initial=0)))
    # 16-bit files often hold 10 or 12 bits: scaling those by 65535 would leave them black.
    top = next((float(top) for top in (1, 255, 1023, 4095, 65535) if largest <= top), largest)
    grey = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), 256):  # 8 bytes a pixel for a strip, not for the whole picture
        strip = np.nan_to_num(values[start : start + 256].astype(np.float64)).clip(0)
        grey[start : start + 256] = np.rint(strip / top * 255)
    return Image.fromarray(grey)


def decoded(data: bytes, px: int | None) -> tuple[np.ndarray, tuple[int, int]]:
    """(pixels as `decode_photograph` gives them, upright (width, height) of the file). Raises Unusable."""
    image = open_photograph(data)
    width, height = image.size
    try:
        if px is not None:
            image.draft(None, (px, px))
        if image.width * image.height > MAX_DECODED:
            raise Unusable(ABSURD_SIZE, f"{width} x {height} px: over {MAX_DECODED // 10**6} megapixels to decode")
        image.load()
        # EXIF orientations 5-8 lie on their side; a damaged one may be text.
        turned = image.getexif().get(0x0112) in (5, 6, 7, 8)
        ImageOps.exif_transpose(image, in_place=True)
        pixels = np.asarray(rgb(image))
    except Unusable:  # a ValueError, as much of what follows
        raise
    except (OSError, *BROKEN) as error:
        raise Unusable(TRUNCATED, str(error)) from None
    return pixels, (height, width) if turned else (width, height)


def decode_photograph(data: bytes, px: int | None = None) -> np.ndarray:
    """Decode any supported file to uint8 RGB (H, W, 3), upright.

    With `px`, a JPEG is scaled by its decoder (1/2, 1/4, 1/8) as far as both sides stay at `px` or above; other
    formats come whole. Raises Unusable.
    """
    return decoded(data, px)[0]


def check_visible(pixels: np.ndarray) -> None:
    """Raise Unusable where uint8 RGB (H, W, 3) shows no fundus: black, one flat tone, or a speck of light."""
    small = np.asarray(Image.fromarray(pixels).resize((64, 64), Image.Resampling.BOX)).astype(np.float32)
    light = small.max(axis=2)
    top = float(np.quantile(light, 0.99))
    if top < 8:
        raise Unusable(NO_FUNDUS, f"99 % of the picture is darker than {top:.0f} of 255")
    if float(light.std()) < 1.5:
        raise Unusable(NO_FUNDUS, f"one flat tone of {float(light.mean()):.0f} of 255")
    lit = float((light > 0.15 * top).mean())
    if lit < 0.05:
        raise Unusable(NO_FUNDUS, f"only {lit:.1%} of the picture is lit")


def squared(pixels: np.ndarray, crop: Crop, px: int) -> np.ndarray:
    """Cut `crop` out of uint8 RGB (H, W, 3), pad with black to a square around (crop.x, crop.y), resize to px."""
    side, width, height = crop.side, crop.right - crop.left, crop.bottom - crop.top
    # The centre of a fitted circle goes to the square's centre, as far as the box stays inside the square.
    left = min(max(side / 2 - (crop.x - crop.left), 0), side - width)
    top = min(max(side / 2 - (crop.y - crop.top), 0), side - height)
    scale = px / side
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    cut = Image.fromarray(pixels).resize(
        size, Image.Resampling.LANCZOS, box=(crop.left, crop.top, crop.right, crop.bottom), reducing_gap=3.0
    )
    canvas = Image.new("RGB", (px, px))
    canvas.paste(cut, (min(round(left * scale), px - size[0]), min(round(top * scale), px - size[1])))
    return np.asarray(canvas)


def prepare(data: bytes, px: int, crop: str = "circle") -> Prepared:
    """Decode, crop ("circle" or "paper"), pad to a square and resize to (px, px, 3). Raises Unusable.

    The JPEG decoder's down-scaling is used only as far as the cropped field of view keeps `px` pixels.
    """
    pixels, (width, height) = decoded(data, px)
    check_visible(pixels)
    found = CROPS[crop](pixels)
    if found.side < px and pixels.shape[1] < width:
        # The fundus fills a part of the frame only: decode once more, so large that the part alone has px.
        pixels = decode_photograph(data, min(max(width, height), -(-px * max(pixels.shape[:2]) // found.side)))
        found = CROPS[crop](pixels)
    return Prepared(squared(pixels, found, px), width, height, border(pixels))


def prepare_row(row: Row, data: bytes, px: int, crop: str = "circle") -> dict[str, Any]:
    """One row of schema.REAL from a reader's `row` and its file's bytes. Raises Unusable."""
    prepared = prepare(data, px, crop)
    image = encode(prepared.pixels)
    return {
        "image_id": row.image_id,
        "dataset": row.dataset,
        "split": row.split,
        "fold": None,
        "patient_id": row.patient_id,
        "grade": row.grade,
        "gradable": row.gradable,
        "stratum": row.stratum,
        "image": image,
        "width": px,
        "height": px,
        "source_width": prepared.source_width,
        "source_height": prepared.source_height,
        "sha256": sha256(image),
        "phash": phash(prepared.pixels),
        "lesions": None,
        "source_border": prepared.source_border,
    }
