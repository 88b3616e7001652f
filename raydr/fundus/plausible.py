"""Cheap checks that an image is a fundus photograph at all, before any grader looks at it."""

import numpy as np


def is_blank(pixels: np.ndarray) -> np.ndarray:
    """bool (B,) of uint8 (B, H, W, 3): hardly any contrast, as a safety checker's black image."""
    return pixels.reshape(len(pixels), -1).std(axis=1) < 4


def is_fundus(pixels: np.ndarray) -> np.ndarray:
    """bool (B,) of uint8 (B, H, W, 3): a lit reddish field in the middle, dark corners, nothing over-exposed."""
    side = pixels.shape[1]
    axis = (np.arange(side) + 0.5) / side * 2 - 1
    r = np.hypot(axis[:, None], axis[None, :])
    field = pixels[:, r < 0.8].astype(np.float32).mean(axis=1)  # (B, 3)
    corners = pixels[:, r > 1.3].astype(np.float32).mean(axis=(1, 2))
    grey = field.mean(axis=1)
    lit = (grey > 25) & (grey < 225)
    reddish = (field[:, 0] > field[:, 1]) & (field[:, 1] >= field[:, 2] - 5)
    return lit & reddish & (corners < 0.4 * grey)
