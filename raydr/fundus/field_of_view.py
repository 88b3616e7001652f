"""Where the fundus lies in a photograph: the paper's crop rule, and a circle fit that does not mind a notch.

Both return a `Crop`: a box in pixels of the given picture and the point that becomes the square's centre.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from raydr.fundus.circle import DARKEST_BORDER, find_circle, lit_mask, reduced

# A border's pixels are below this in every channel.
BLACK = 16


@dataclass(frozen=True)
class Crop:
    """Half-open box [left, right) x [top, bottom) in px, and the point (x, y) to be centred when padding."""

    left: int
    top: int
    right: int
    bottom: int
    x: float
    y: float

    @property
    def side(self) -> int:
        """Side of the smallest square that holds the box, px."""
        return max(self.right - self.left, self.bottom - self.top)


def box(left: int, top: int, right: int, bottom: int) -> Crop:
    """A crop that is padded around its own centre."""
    return Crop(left, top, right, bottom, (left + right) / 2, (top + bottom) / 2)


def first_and_last(passing: np.ndarray) -> tuple[int, int]:
    """Half-open range from the first to the last True of a non-empty boolean vector."""
    where = np.flatnonzero(passing)
    return int(where[0]), int(where[-1]) + 1


def border(pixels: np.ndarray) -> list[float]:
    """Black share of uint8 RGB (H, W, 3): [of all, of the four corners, of the middles of the four edges]."""
    step = max(1, min(pixels.shape[:2]) // 200)
    black = pixels[::step, ::step].max(axis=2) < BLACK
    height, width = black.shape
    y, x = max(1, height // 10), max(1, width // 10)
    corners = [
        black[rows, columns].mean() for rows in (slice(y), slice(-y, None)) for columns in (slice(x), slice(-x, None))
    ]
    middle_y, middle_x = slice(height * 2 // 5, height * 3 // 5), slice(width * 2 // 5, width * 3 // 5)
    edges = [black[middle_y, 0], black[middle_y, -1], black[0, middle_x], black[-1, middle_x]]
    return [float(black.mean()), float(np.mean(corners)), float(np.mean([edge.mean() for edge in edges]))]


def crop_paper(pixels: np.ndarray) -> Crop:
    """The paper's rule (section 1 of its method) on uint8 RGB (H, W, 3).

    Grey image; mask = pixels above 10 % of the mean non-zero grey; crop to the first and last row and column in
    which more than 2 % of the pixels pass. The whole picture where no row or no column passes.
    """
    height, width = pixels.shape[:2]
    grey = np.asarray(Image.fromarray(pixels).convert("L"))
    lit = grey[grey > 0]
    mask = grey > 0.1 * (lit.mean() if lit.size else 0.0)
    rows, columns = mask.mean(axis=1) > 0.02, mask.mean(axis=0) > 0.02
    if not rows.any() or not columns.any():
        return box(0, 0, width, height)
    (top, bottom), (left, right) = first_and_last(rows), first_and_last(columns)
    return box(left, top, right, bottom)


def crop_circle(pixels: np.ndarray) -> Crop:
    """The field of view's circle, clipped to the frame, of uint8 RGB (H, W, 3); its centre stays the centre.

    Without a visible rim: the lit part where a flat black border surrounds it, else the whole picture. A photograph
    that has no border is never cropped.
    """
    height, width = pixels.shape[:2]
    circle = find_circle(pixels)
    if circle is not None:
        radius = circle.diameter / 2
        left, right = round(max(0.0, circle.x - radius)), round(min(width, circle.x + radius))
        top, bottom = round(max(0.0, circle.y - radius)), round(min(height, circle.y + radius))
        return Crop(left, top, right, bottom, circle.x, circle.y)
    light, factor = reduced(pixels)
    lit = lit_mask(light)
    if lit is None:
        return box(0, 0, width, height)
    mask, _ = lit
    rows, columns = np.nonzero(mask)
    top, bottom, left, right = int(rows.min()), int(rows.max()) + 1, int(columns.min()), int(columns.max()) + 1
    outside = np.ones_like(mask)
    outside[top:bottom, left:right] = False
    # Dark tissue at the edge has texture; a border does not.
    if not outside.any() or light[outside].std() > 3 or light[outside].mean() > DARKEST_BORDER:
        return box(0, 0, width, height)
    return box(left * factor, top * factor, min(width, right * factor), min(height, bottom * factor))
