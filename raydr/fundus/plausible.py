"""Cheap checks that an image is a fundus photograph at all, before any grader looks at it."""

import numpy as np

# Levels of 255 at which a pixel is as good as black in all channels, or white; and the share of the field that may be.
BLACK, WHITE = 8, 250
MOST_LOST = 0.25


def is_blank(pixels: np.ndarray) -> np.ndarray:
    """bool (B,) of uint8 (B, H, W, 3): hardly any contrast, as a safety checker's black image."""
    return pixels.reshape(len(pixels), -1).std(axis=1) < 4


def is_fundus(pixels: np.ndarray) -> np.ndarray:
    """bool (B,) of uint8 (B, H, W, 3): a lit reddish field in the middle, dark corners, little of it black or white."""
    side = pixels.shape[1]
    axis = (np.arange(side) + 0.5) / side * 2 - 1
    r = np.hypot(axis[:, None], axis[None, :])
    inside = pixels[:, r < 0.8]  # (B, pixels, 3)
    field = inside.astype(np.float32).mean(axis=1)  # (B, 3)
    # A mean hides a field half of which was not drawn, or is glare: phantoms of all cameras have none of either.
    lost = ((inside.max(axis=2) <= BLACK) | (inside.min(axis=2) >= WHITE)).mean(axis=1)
    corners = pixels[:, r > 1.3].astype(np.float32).mean(axis=(1, 2))
    grey = field.mean(axis=1)
    lit = (grey > 25) & (grey < 225)
    reddish = (field[:, 0] > field[:, 1]) & (field[:, 1] >= field[:, 2] - 5)
    return lit & reddish & (corners < 0.4 * grey) & (lost <= MOST_LOST)
