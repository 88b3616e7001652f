"""A circle fitted to the rim of the field of view: robust to notches, cuts, shadows and noise, sharp between pixels."""

from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

# The circle is fitted at this size: 1 % of the diameter is then about 5 px.
ANALYSIS_PX = 512
NUM_RAYS = 360
# Rim points a circle must rest on: 24 degrees of it.
LEAST_POINTS = 24
NUM_TRIPLES = 400
# A border is near black and darker than a third of the fundus, or it is no border but dark tissue.
DARKEST_BORDER = 32.0
BORDER_TO_FUNDUS = 0.35


@dataclass(frozen=True)
class Circle:
    """Field of view in continuous pixel coordinates: the centre of the top left pixel is (0.5, 0.5)."""

    x: float
    y: float
    diameter: float


def otsu(values: np.ndarray) -> float:
    """Threshold that maximises the variance between two classes of 8-bit values (Otsu 1979)."""
    counts = np.bincount(values.astype(np.uint8).ravel(), minlength=256).astype(float)
    below = np.cumsum(counts)
    moment = np.cumsum(counts * np.arange(256))
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (moment[-1] * below / below[-1] - moment) ** 2 / (below * (below[-1] - below))
    return float(np.nanargmax(np.where(np.isfinite(between), between, np.nan)))


def reduced(pixels: np.ndarray) -> tuple[np.ndarray, int]:
    """(brightest channel as float32, reduction factor), at most ANALYSIS_PX wide; in the dark only red survives."""
    factor = -(-max(pixels.shape[:2]) // ANALYSIS_PX)
    small = Image.fromarray(pixels)
    small = small.reduce(factor) if factor > 1 else small
    red, green, blue = np.moveaxis(np.asarray(small), 2, 0)
    return np.maximum(np.maximum(red, green), blue).astype(np.float32), factor


def lit_mask(light: np.ndarray) -> tuple[np.ndarray, float] | None:
    """(mask of the fundus = largest lit component, level of the border), or None where there is no border at all."""
    smooth = ndimage.gaussian_filter(light, 1.0)
    if smooth.max() - smooth.min() < 2:
        return None
    # Square roots, because a dark photograph's fundus spans few levels and a bright disc many.
    split = otsu(np.sqrt(smooth / max(float(smooth.max()), 1.0)) * 255)
    low = smooth <= (split / 255) ** 2 * smooth.max()
    border, fundus = float(np.median(smooth[low])), float(np.median(smooth[~low]))
    if border > min(DARKEST_BORDER, BORDER_TO_FUNDUS * fundus):
        return None
    noise = 1.4826 * float(np.median(np.abs(smooth[low] - border)))
    # 12 % of the step keeps vignetted rims; four sigma and two levels keep JPEG noise out.
    mask = smooth > border + max(0.12 * (fundus - border), 4 * noise, 2.0)
    labels, count = ndimage.label(mask)
    if count == 0:
        return None
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == int(sizes.argmax()), border


def rim(mask: np.ndarray) -> np.ndarray:
    """Points (N, 2) as (x, y) where rays from the centroid leave `mask`, without those cut by the frame."""
    height, width = mask.shape
    y0, x0 = ndimage.center_of_mass(mask)
    angle = np.linspace(0, 2 * np.pi, NUM_RAYS, endpoint=False)
    # From the farthest corner inwards, half a pixel a step; single precision holds a pixel's thousandth.
    farthest = np.hypot(max(x0, width - x0), max(y0, height - y0))
    radius = np.arange(0, farthest, 0.5, dtype=np.float32)[::-1]
    x = np.float32(x0) + np.outer(np.cos(angle).astype(np.float32), radius)
    y = np.float32(y0) + np.outer(np.sin(angle).astype(np.float32), radius)
    # Outside lies a frame of dark, so that no point needs to be asked whether it is inside.
    dark = np.pad(mask, 1)
    columns = (x + 1.5).clip(0, width + 1).astype(np.int32)
    rows = (y + 1.5).clip(0, height + 1).astype(np.int32)
    lit = dark.ravel()[rows * (width + 2) + columns]
    last = lit.argmax(axis=1)
    points = np.column_stack([x[np.arange(NUM_RAYS), last], y[np.arange(NUM_RAYS), last]]).astype(float)
    frame = (points < 2) | (points > np.array([width - 3, height - 3]))
    return points[lit.any(axis=1) & ~frame.any(axis=1)] + 0.5


def circles_through(triples: np.ndarray) -> np.ndarray:
    """(x, y, radius) of the circles through (N, 3, 2) points; collinear triples give infinities."""
    a, b, c = triples[:, 0], triples[:, 1], triples[:, 2]
    ab, ac = b - a, c - a
    cross = 2 * (ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0])
    ab2, ac2 = (ab**2).sum(axis=1), (ac**2).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        x = (ac[:, 1] * ab2 - ab[:, 1] * ac2) / cross
        y = (ab[:, 0] * ac2 - ac[:, 0] * ab2) / cross
    return np.column_stack([a[:, 0] + x, a[:, 1] + y, np.hypot(x, y)])


def fit(points: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray] | None:
    """((x, y, radius), inliers) of the circle most `points` agree on: triples first, least squares after.

    A notch, a flat cut and a shadowed rim are outliers to the triples; `scale` is the longer side of the picture.
    """
    if len(points) < LEAST_POINTS:
        return None
    rng = np.random.default_rng(0)
    triples = points[rng.integers(0, len(points), (NUM_TRIPLES, 3))]
    candidates = circles_through(triples)
    plausible = np.isfinite(candidates).all(axis=1) & (candidates[:, 2] > 0.15 * scale) & (candidates[:, 2] < scale)
    candidates = candidates[plausible]
    if not len(candidates):
        return None
    tolerance = 0.005 * scale
    # |distance - radius| < tolerance, in squares: 144,000 roots cost as much as all the rest of a fit.
    squared = (points[:, 0] - candidates[:, :1]) ** 2 + (points[:, 1] - candidates[:, 1:2]) ** 2
    inner, outer = (candidates[:, 2:] - tolerance) ** 2, (candidates[:, 2:] + tolerance) ** 2
    agreeing = np.count_nonzero((squared > inner) & (squared < outer), axis=1)
    x, y, radius = candidates[agreeing.argmax()]
    for _ in range(8):  # Gauss-Newton on the geometric distance, inliers chosen again each time
        offset = points - (x, y)
        distance = np.hypot(offset[:, 0], offset[:, 1])
        inliers = np.abs(distance - radius) < tolerance
        if inliers.sum() < LEAST_POINTS:
            return None
        unit = offset[inliers] / distance[inliers, None]
        step = np.linalg.lstsq(np.column_stack([unit, np.ones(len(unit))]), distance[inliers] - radius, rcond=None)[0]
        x, y, radius = x + step[0], y + step[1], radius + step[2]
    return np.array([x, y, radius]), inliers


def half_maximum(light: np.ndarray, border: float, x: float, y: float, radius: float) -> np.ndarray:
    """Points (N, 2) as (x, y) near the circle where light falls to halfway between rim and `border`.

    The mask's low threshold sits on the foot of the blurred edge, 0.4 % of the diameter outside it at 500 px and 3 %
    at 64 px; the half maximum does not move with blur.
    """
    height, width = light.shape
    angle = np.linspace(0, 2 * np.pi, NUM_RAYS, endpoint=False)
    reach = max(4.0, 0.04 * radius)
    along = np.arange(-reach, reach, 0.25)
    columns = x + np.outer(np.cos(angle), radius + along)
    rows = y + np.outer(np.sin(angle), radius + along)
    seen = (columns > 1) & (columns < width - 1) & (rows > 1) & (rows < height - 1)
    profile = ndimage.map_coordinates(light, [rows - 0.5, columns - 0.5], order=1, mode="nearest")
    # The inner quarter of the profile lies inside the fundus: its median is the rim's own brightness.
    rim_level = np.median(profile[:, : len(along) // 4], axis=1, keepdims=True)
    bright = profile > border + 0.5 * (rim_level - border)
    last = bright.shape[1] - 1 - bright[:, ::-1].argmax(axis=1)
    usable = bright.any(axis=1) & (last < len(along) - 1) & seen.all(axis=1)
    index = np.flatnonzero(usable)
    return np.column_stack([columns[index, last[index]], rows[index, last[index]]])


def has_step(light: np.ndarray, x: float, y: float, radius: float) -> bool:
    """Whether light falls to border level across the circle on at least half of its part inside the frame."""
    height, width = light.shape
    angle = np.linspace(0, 2 * np.pi, NUM_RAYS, endpoint=False)

    def ring(share: float) -> tuple[np.ndarray, np.ndarray]:
        columns = np.floor(x + share * radius * np.cos(angle)).astype(int)
        rows = np.floor(y + share * radius * np.sin(angle)).astype(int)
        seen = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
        return np.where(seen, light[rows.clip(0, height - 1), columns.clip(0, width - 1)], 0), seen

    (inner, seen_inner), (outer, seen_outer) = ring(0.97), ring(1.03)
    seen = seen_inner & seen_outer
    return bool(seen.sum() >= LEAST_POINTS and (outer[seen] < 0.5 * inner[seen]).mean() >= 0.5)


def find_circle(pixels: np.ndarray) -> Circle | None:
    """The circular field of view of uint8 RGB (H, W, 3), or None where no circle's rim is visible.

    Within 1 % of the diameter on shifted, padded, rotated and darkened photographs, with and without a notch
    (tests/fundus/test_preprocess.py).
    """
    light, factor = reduced(pixels)
    lit = lit_mask(light)
    if lit is None:
        return None
    mask, border = lit
    scale = float(max(light.shape))
    points = rim(mask)
    found = fit(points, scale)
    if found is None:
        return None
    (x, y, radius), inliers = found
    # Less agreement than 40 % of the visible rim is a coincidence of vessels and shadows.
    if inliers.sum() < 0.4 * len(points) or not has_step(light, x, y, radius):
        return None
    sharper = fit(half_maximum(light, border, x, y, radius), scale)
    # Too little of the rim away from the frame keeps the first fit.
    if sharper is not None and abs(sharper[0][2] - radius) < 0.05 * radius + 1:
        x, y, radius = sharper[0]
    return Circle(float(x * factor), float(y * factor), float(2 * radius * factor))
