"""Phantom fundus photographs: procedural, grade-faithful, at any size, deterministic by (seed, index).

    pixels, ledger = render(seed=1, index=42, grade=3, px=64, camera="DDR")

The eye (laterality, disc, macula, vessels, illumination, tint, blur, noise, dust, drusen) comes from
one random stream, the lesions from another that alone depends on the grade: so everything but the
lesions is independent of the grade, and `lesions=False` renders the same eye healthy. A grader
trained on phantoms must then score chance, .20.

Drawn at 2-4 times the output size and reduced, or microaneurysms would vanish. About 8 ms a 64 px
image on one core (`tests/fundus/test_phantom.py` asserts the rate's order of magnitude).
Phantoms test the software, not the clinic.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from raydr.fundus.lesions import Canvas, plan
from raydr.identity import rng_of


@dataclass(frozen=True)
class Camera:
    """What a data set's cameras do to an eye; ranges are uniform."""

    red: tuple[float, float] = (185, 225)
    green: tuple[float, float] = (88, 122)
    blue: tuple[float, float] = (38, 66)
    gamma: tuple[float, float] = (0.85, 1.2)
    blur_px: tuple[float, float] = (0.1, 0.35)
    noise: tuple[float, float] = (1.0, 3.0)
    # Field-of-view diameter as a share of the image side; above 1 the circle is cut off.
    field: tuple[float, float] = (0.93, 1.0)


CAMERAS = {
    "DDR": Camera(),
    "EyePACS": Camera(
        red=(165, 240), green=(70, 125), blue=(25, 75), blur_px=(0.1, 0.45), noise=(1, 4), field=(0.9, 1.02)
    ),
    "APTOS": Camera(red=(150, 205), green=(80, 120), blue=(20, 50), blur_px=(0.1, 0.4), field=(0.95, 1.05)),
    "Messidor-2": Camera(red=(190, 240), green=(95, 130), blue=(45, 80), blur_px=(0.1, 0.3), noise=(0.5, 2)),
}


def _supersampling(px: int) -> int:
    return 4 if px <= 128 else 3 if px <= 256 else 2


def _background(
    rng: np.random.Generator, camera: Camera, side: int, radius: float, macula: tuple[float, float]
) -> Image.Image:
    """Retina without vessels: tint, uneven illumination, mottling, macula. RGB, side x side."""
    low = 48  # illumination is smooth: computed at 48 px and enlarged, a fiftieth of the work
    axis = (np.arange(low) + 0.5 - low / 2) * (side / low) / radius
    x, y = axis[None, :], axis[:, None]
    tint = np.array([rng.uniform(*camera.red), rng.uniform(*camera.green), rng.uniform(*camera.blue)])
    centre = rng.uniform(-0.25, 0.25, 2)
    light = 1.08 - rng.uniform(0.2, 0.5) * ((x - centre[0]) ** 2 + (y - centre[1]) ** 2)
    light = light + rng.uniform(-0.12, 0.12) * x + rng.uniform(-0.12, 0.12) * y
    coarse = Image.fromarray(rng.normal(0, 1, (10, 10)).astype(np.float32), "F").resize(
        (low, low), Image.Resampling.BICUBIC
    )
    light = light + rng.uniform(0.01, 0.05) * np.asarray(coarse)
    spot = np.exp(-((x - macula[0]) ** 2 + (y - macula[1]) ** 2) / (2 * rng.uniform(0.1, 0.15) ** 2))
    light = light * (1 - rng.uniform(0.25, 0.45) * spot)
    rgb = np.clip(light[..., None] * tint, 0, 255).astype(np.uint8)
    return Image.fromarray(rgb).resize((side, side), Image.Resampling.BILINEAR)


def _vessels(
    rng: np.random.Generator, size: int, radius: float, disc: tuple[float, float], nasal: int
) -> tuple[Image.Image, Image.Image]:
    """Masks (arteries, veins) of a branching tree that leaves the disc. L, size x size."""
    masks = Image.new("L", (size, size)), Image.new("L", (size, size))
    pens = tuple(ImageDraw.Draw(mask) for mask in masks)
    vein_width = 5 / 512 * 2 * radius

    def grow(
        x: float, y: float, heading: float, bend: float, width: float, pen: ImageDraw.ImageDraw, length: int
    ) -> None:
        points = [(x, y)]
        step = 0.075
        for k in range(length):
            heading += bend + rng.normal(0, 0.13)
            x, y = x + step * math.cos(heading), y + step * math.sin(heading)
            if x * x + y * y > 1.05:
                break
            points.append((x, y))
            if width > 1.0 and k > 1 and rng.random() < 0.22:
                side = 1 if rng.random() < 0.5 else -1
                grow(x, y, heading + side * rng.uniform(0.5, 1.0), 0.0, width * 0.6, pen, length - k - 1)
        if len(points) > 1:
            flat = [size / 2 + v * radius for point in points for v in point]
            third = max(4, len(points) // 3 * 2)
            for start in range(0, len(flat) - 2, third):  # tapers in steps of a third
                shrink = 1 - 0.5 * start / len(flat)
                pen.line(flat[start : start + third + 2], fill=235, width=max(1, round(width * shrink)), joint="curve")

    for vertical in (-1, 1):
        for kind, pen in enumerate(pens):
            width = vein_width * (0.72 if kind == 0 else 1.0) * rng.uniform(0.85, 1.15)
            # The arcade: up (or down) from the disc, then round the macula.
            heading = math.atan2(vertical, -0.35 * nasal) + rng.normal(0, 0.12)
            grow(*disc, heading, -vertical * nasal * rng.uniform(0.07, 0.12) * -1, width, pen, 16)
            heading = math.atan2(vertical * 0.9, nasal) + rng.normal(0, 0.2)
            grow(*disc, heading, 0.0, width * 0.7, pen, 9)
    return masks


def _distractors(rng: np.random.Generator, canvas: Canvas) -> None:
    """Pale drusen and soft dust specks in some eyes of every grade: not lesions of the scale."""
    for colour, probability, count, diameter, fill in (
        ((228, 190, 110), 0.3, 5, 7 / 512, 70),
        ((70, 50, 40), 0.2, 2, 16 / 512, 60),
    ):
        if rng.random() < probability:
            layer = Image.new("L", canvas.image.size)
            pen = ImageDraw.Draw(layer)
            for _ in range(int(rng.integers(1, count + 1))):
                r, a = 0.85 * math.sqrt(rng.random()), rng.uniform(0, 2 * math.pi)
                x, y = canvas.xy(r * math.cos(a), r * math.sin(a))
                canvas._disc(pen, x, y, max(diameter * 2 * canvas.radius, 1.4 * canvas.factor), fill)
            canvas.image.paste(colour, mask=layer)


def render(
    seed: int, index: int, grade: int, px: int = 64, camera: str = "DDR", lesions: bool = True
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Render one phantom.

    Returns:
        uint8 RGB pixels (px, px, 3) and the lesion ledger (dicts: kind, quadrant, x, y in field
        radii, size in px of a 512 px field, angle in radians). Without `lesions` the ledger is empty.
    """
    look = CAMERAS.get(camera, CAMERAS["DDR"])
    rng = rng_of("phantom-eye", seed, index)
    factor = _supersampling(px)
    size = px * factor
    radius = rng.uniform(*look.field) * size / 2
    nasal = 1 if rng.random() < 0.5 else -1  # the disc's side: right or left eye
    disc = (nasal * rng.uniform(0.34, 0.5), rng.uniform(-0.1, 0.1))
    macula = (disc[0] - nasal * 0.68, disc[1] + rng.uniform(0.0, 0.1))

    image = _background(rng, look, size, radius, macula)
    arteries, veins = _vessels(rng, size, radius, disc, nasal)
    image.paste((150, 44, 28), mask=arteries.point(lambda v: int(v * 0.62)))
    image.paste((112, 24, 22), mask=veins.point(lambda v: int(v * 0.78)))
    canvas = Canvas(image, factor, radius, rng)
    layer = Image.new("L", image.size)
    pen = ImageDraw.Draw(layer)
    x, y = canvas.xy(*disc)
    diameter = rng.uniform(58, 70) / 512 * 2 * radius
    for scale, fill in ((1.1, 70), (1.0, 150), (0.85, 200), (0.45, 245)):
        canvas._disc(pen, x, y, diameter * scale, fill, stretch=0.92)
    # Vessels run over the disc's rim: take half of them out of its mask.
    layer = (
        ImageChops.subtract(layer, ImageChops.lighter(arteries, veins), scale=1.0, offset=0)
        if rng.random() < 0.5
        else layer
    )
    image.paste((248, 218, 150), mask=layer)
    _distractors(rng, canvas)

    ledger = []
    if lesions and grade > 0:
        lesion_rng = rng_of("phantom-lesions", seed, index, grade)
        planned = plan(grade, lesion_rng, nasal, disc)
        Canvas(image, factor, radius, lesion_rng).draw(planned)
        ledger = [lesion.row() for lesion in planned]

    field = Image.new("L", image.size)
    ImageDraw.Draw(field).ellipse(
        (size / 2 - radius, size / 2 - radius, size / 2 + radius, size / 2 + radius), fill=255
    )
    image = Image.composite(image, Image.new("RGB", image.size), field).reduce(factor)
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(*look.blur_px) * max(1.0, px / 256)))
    gamma = rng.uniform(*look.gamma)
    table = np.clip(255 * (np.arange(256) / 255) ** gamma, 0, 255)
    noise = rng.normal(0, rng.uniform(*look.noise), (px, px, 3)).astype(np.float32)
    pixels = table.astype(np.float32)[np.asarray(image)]
    inside = np.asarray(field.reduce(factor), dtype=np.float32)[..., None] / 255
    return np.clip(pixels + noise * inside + 0.5, 0, 255).astype(np.uint8), ledger
