"""Cheap checks that an image is a fundus photograph at all, before any grader looks at it."""

from functools import cache

import numpy as np
from PIL import Image

# Levels of 255 at which a pixel is as good as black in all channels, or white; and the share of the field that may be.
BLACK, WHITE = 8, 250
MOST_LOST = 0.25

# The optic disc is looked for at SIDE px; on fewer than LEAST_PX it is under 4 px wide, and the check is left out.
SIDE, LEAST_PX = 64, 32
# px of SIDE: blurs that keep the disc (8 px wide) and that take its surroundings with it, of green and blue, in which
# the retina is darkest beside it.
DISC_SIGMA, AROUND_SIGMA = 1.5, 6.0
# How much brighter than its surroundings the brightest spot must be, in mean levels of the field. Of 800 phantoms of
# all cameras and grades the first percentile is .29 (what lies below is grade 4, its disc under new vessels and blood);
# without their disc those of grades 0 and 1 have .11 in the median and .16 at the 95th percentile.
DISC_CONTRAST = 0.22


def is_blank(pixels: np.ndarray) -> np.ndarray:
    """bool (B,) of uint8 (B, H, W, 3): hardly any contrast, as a safety checker's black image."""
    return pixels.reshape(len(pixels), -1).std(axis=1) < 4


@cache
def _radius(side: int) -> np.ndarray:
    """(side, side) distance from the centre in half sides."""
    axis = (np.arange(side) + 0.5) / side * 2 - 1
    return np.hypot(axis[:, None], axis[None, :])


@cache
def _gaussian(sigma: float) -> np.ndarray:
    """(SIDE, SIDE) matrix that blurs along one axis; not normalised: `_blurred` divides by what lies in the field."""
    line = np.arange(SIDE)
    return np.exp(-0.5 * ((line[:, None] - line[None]) / sigma) ** 2).astype(np.float32)


def _blurred(images: np.ndarray, mask: np.ndarray, sigma: float) -> np.ndarray:
    """`images` (B, SIDE, SIDE) blurred inside `mask` (SIDE, SIDE) alone."""
    kernel = _gaussian(sigma)
    return (kernel @ (images * mask) @ kernel) / (kernel @ mask @ kernel + 1e-6)


def has_disc(pixels: np.ndarray) -> np.ndarray:
    """bool (B,) of uint8 (B, px, px, 3): somewhere in the field is a bright spot as wide as an optic disc.

    It knows no anatomy: a large bright lesion (cotton wool, a plaque of exudates) passes for a disc. True below
    LEAST_PX.
    """
    if pixels.shape[1] < LEAST_PX:
        return np.ones(len(pixels), bool)
    if pixels.shape[1:3] != (SIDE, SIDE):
        small = [Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BOX) for image in pixels]
        pixels = np.stack([np.asarray(image) for image in small])
    light = pixels[..., 1:].mean(axis=3, dtype=np.float32)
    # The rim is darker than its surroundings and brighter than the border: neither tells of a disc.
    mask, inner = (_radius(SIDE) < 0.92).astype(np.float32), _radius(SIDE) < 0.8
    contrast = _blurred(light, mask, DISC_SIGMA) - _blurred(light, mask, AROUND_SIGMA)
    return contrast[:, inner].max(axis=1) > DISC_CONTRAST * (light[:, mask > 0].mean(axis=1) + 1)


def is_fundus(pixels: np.ndarray) -> np.ndarray:
    """bool (B,) of uint8 (B, px, px, 3): a lit reddish field in the middle with an optic disc, dark corners, little of
    it black or white."""
    r = _radius(pixels.shape[1])
    inside = pixels[:, r < 0.8]  # (B, pixels, 3)
    field = inside.astype(np.float32).mean(axis=1)  # (B, 3)
    # A mean hides a field half of which was not drawn, or is glare: phantoms of all cameras have none of either.
    lost = ((inside.max(axis=2) <= BLACK) | (inside.min(axis=2) >= WHITE)).mean(axis=1)
    corners = pixels[:, r > 1.3].astype(np.float32).mean(axis=(1, 2))
    grey = field.mean(axis=1)
    lit = (grey > 25) & (grey < 225)
    reddish = (field[:, 0] > field[:, 1]) & (field[:, 1] >= field[:, 2] - 5)
    return lit & reddish & (corners < 0.4 * grey) & (lost <= MOST_LOST) & has_disc(pixels)
