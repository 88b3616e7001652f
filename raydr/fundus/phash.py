"""A 64-bit perceptual hash from which those of the mirror image and of the upside-down picture follow.

The hash holds the signs of 8 x 8 low-frequency DCT coefficients. Mirroring a picture flips the sign of the
coefficients of odd horizontal frequency and nothing else, turning it by 180 degrees also that of odd vertical
frequency: each is one XOR, and a table need not store four hashes.
"""

import numpy as np
from PIL import Image
from scipy import fft, ndimage

PX = 64
# Coefficients 1..8 in both directions: frequency 0 is the mean and the shading of whole rows.
FREQUENCIES = slice(1, 9)


def _odd_columns() -> np.ndarray:
    return np.broadcast_to(np.arange(1, 9) % 2 == 1, (8, 8))


def _mask(bits: np.ndarray) -> np.uint64:
    return np.uint64(int.from_bytes(np.packbits(bits).tobytes(), "big"))


# Local mean subtracted at this scale, px of PX. On 1,000 phantoms 2 halves the false pairs of 6 at equal recall.
SIGMA = 2.0
MIRROR_MASK = _mask(_odd_columns())
TURN_MASK = _mask(_odd_columns() ^ _odd_columns().T)
# (mirrored left to right, turned by 180 degrees, what to XOR): the ways in which copies of a photograph lie. EyePACS
# holds eyes that were photographed upside down.
ORIENTATIONS = (
    (False, False, 0),
    (True, False, int(MIRROR_MASK)),
    (False, True, int(TURN_MASK)),
    (True, True, int(MIRROR_MASK ^ TURN_MASK)),
)


def _disc() -> np.ndarray:
    """Soft mask of the inscribed disc, (PX, PX): the field of view's rim is in every photograph and tells nothing."""
    axis = (np.arange(PX) + 0.5) / PX - 0.5
    radius = np.hypot(axis[:, None], axis[None, :])
    return np.clip((0.45 - radius) / 0.05, 0, 1)


DISC = _disc()


def detail(pixels: np.ndarray, zoom: float = 1.0) -> np.ndarray:
    """Vessels and optic disc of uint8 RGB (H, W, 3) as float32 (PX, PX) of unit norm, zero outside the field of view.

    `zoom` looks at the central 1/zoom of the picture. Subtracting the local mean leaves illumination out, dividing by
    the norm leaves exposure out.
    """
    # Float and a triangle filter, because 8-bit rounding and the box filter's ties are not symmetric: mirrored pictures
    # would differ in a bit or two.
    exact = Image.fromarray(np.asarray(Image.fromarray(pixels).convert("L"), dtype=np.float32))
    height, width = pixels.shape[:2]
    x, y = width * (1 - 1 / zoom) / 2, height * (1 - 1 / zoom) / 2
    reduced = exact.resize((PX, PX), Image.Resampling.BILINEAR, box=(x, y, width - x, height - y))
    grey = np.asarray(reduced, dtype=np.float64)
    inside = DISC > 0
    grey = np.where(inside, grey, grey[inside].mean())
    local = (grey - ndimage.gaussian_filter(grey, SIGMA, mode="nearest")) * DISC
    return (local / max(float(np.linalg.norm(local)), 1e-6)).astype(np.float32)


def phash(pixels: np.ndarray) -> str:
    """16 hex digits (64 bits) of uint8 RGB (H, W, 3)."""
    coefficients = fft.dctn(detail(pixels), type=2, norm="ortho")[FREQUENCIES, FREQUENCIES]
    return np.packbits(coefficients > 0).tobytes().hex()


def mirrored(value: str) -> str:
    """Hash of the picture mirrored left to right."""
    return f"{int(value, 16) ^ int(MIRROR_MASK):016x}"


def turned(value: str) -> str:
    """Hash of the picture turned by 180 degrees."""
    return f"{int(value, 16) ^ int(TURN_MASK):016x}"


def laid(pixels: np.ndarray, is_mirrored: bool, is_turned: bool) -> np.ndarray:
    """A view of pictures (..., H, W) in one of ORIENTATIONS."""
    return pixels[..., :: -1 if is_turned else 1, :: -1 if is_mirrored != is_turned else 1]


def hamming(a: str, b: str) -> int:
    """Number of bits in which two hashes differ, 0-64."""
    return (int(a, 16) ^ int(b, 16)).bit_count()
