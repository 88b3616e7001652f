"""Which lesions a phantom of a grade has, where, and how they are drawn.

Positions are in field coordinates: the field of view is the unit disc, x to the right, y down. Sizes
are diameters in px of a 512 px field (about 26 um each), as the ICDR literature gives them. Below
512 px a lesion would shrink under a pixel, so each kind has a floor in *output* px (`FLOOR_PX`): at
64 px a microaneurysm is drawn at 1.3 px, about five times its true size. This exaggeration is what
lets a 64 px image hold a grade at all.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

# Smallest drawn diameter (or line width) by kind, output px.
FLOOR_PX = {
    "microaneurysm": 1.4,
    "dot": 1.7,
    "blot": 2.6,
    "flame": 1.6,
    "exudate": 1.0,
    "cotton_wool": 3.5,
    "venous_beading": 1.7,
    "irma": 0.65,
    "neovascularisation_disc": 0.75,
    "neovascularisation_elsewhere": 0.75,
    "preretinal": 8.0,
    "vitreous": 14.0,
}

DARK_RED, RED, CRIMSON = (84, 12, 12), (120, 24, 20), (196, 20, 40)
YELLOW, WHITE = (246, 224, 120), (236, 226, 190)


@dataclass(frozen=True)
class Lesion:
    kind: str
    quadrant: str
    x: float
    y: float
    size: float  # diameter, px of a 512 px field
    angle: float  # radians; direction of a flame, shape of a tangle

    def row(self) -> dict[str, Any]:
        return {key: round(v, 4) if isinstance(v, float) else v for key, v in asdict(self).items()}


def quadrant_of(x: float, y: float, nasal: int) -> str:
    """Quadrant of a field position; `nasal` is the sign of x on the side of the optic disc."""
    return ("superior" if y < 0 else "inferior") + ("_nasal" if x * nasal > 0 else "_temporal")


class Plan:
    """Collects the lesions of one eye; `rng` is the lesion stream, separate from the eye's anatomy."""

    def __init__(self, rng: np.random.Generator, nasal: int, disc: tuple[float, float]):
        self.rng, self.nasal, self.disc = rng, nasal, disc
        self.lesions: list[Lesion] = []

    def place(self, quadrant: int | None = None, radius: tuple[float, float] = (0.12, 0.88)) -> tuple[float, float]:
        """A position in the field off the optic disc; `quadrant` 0-3 counts as in QUADRANTS."""
        while True:
            r = math.sqrt(self.rng.uniform(radius[0] ** 2, radius[1] ** 2))
            a = self.rng.uniform(0, 2 * math.pi)
            x, y = r * math.cos(a), r * math.sin(a)
            if quadrant is not None:
                y = -abs(y) if quadrant < 2 else abs(y)
                x = abs(x) * (self.nasal if quadrant % 2 else -self.nasal)
            # Keep 0.03 from the axes, so that a quadrant count never hangs on a rounding.
            if min(abs(x), abs(y)) > 0.03 and math.hypot(x - self.disc[0], y - self.disc[1]) > 0.2:
                return x, y

    def add(
        self, kind: str, size: tuple[float, float], quadrant: int | None = None, at: Any = None, **where: Any
    ) -> None:
        x, y = at if at is not None else self.place(quadrant, **where)
        self.lesions.append(
            Lesion(kind, quadrant_of(x, y, self.nasal), x, y, self.rng.uniform(*size), self.rng.uniform(0, 2 * math.pi))
        )

    def microaneurysms(self, low: int, high: int) -> None:
        for _ in range(self.rng.integers(low, high + 1)):
            self.add("microaneurysm", (1, 4))

    def haemorrhages(self, quadrant: int, count: int) -> None:
        for kind in self.rng.choice(["dot", "blot", "flame"], size=count, p=[0.6, 0.25, 0.15]):
            self.add(str(kind), {"dot": (4, 8), "blot": (8, 20), "flame": (6, 14)}[kind], quadrant)

    def moderate(self) -> None:
        """More than microaneurysms: haemorrhages, exudates, cotton-wool spots, at most one beaded quadrant."""
        self.microaneurysms(3, 10)
        before = len(self.lesions)
        while len(self.lesions) == before:
            for quadrant in range(4):
                if self.rng.random() < 0.6:
                    self.haemorrhages(quadrant, int(self.rng.integers(1, 8)))
            if self.rng.random() < 0.5:
                for _ in range(self.rng.integers(1, 4)):
                    self.add("exudate", (10, 40), radius=(0.1, 0.7))
            for _ in range(self.rng.integers(0, 3)):
                self.add("cotton_wool", (16, 30))

    def severe(self) -> None:
        """Moderate plus one criterion of the 4-2-1 rule (two in every fifth eye)."""
        self.moderate()
        for criterion in self.rng.choice(3, size=1 + (self.rng.random() < 0.2), replace=False, p=[0.4, 0.3, 0.3]):
            if criterion == 0:
                for quadrant in range(4):
                    self.haemorrhages(quadrant, int(self.rng.integers(21, 29)))
            elif criterion == 1:
                for quadrant in self.rng.choice(4, size=self.rng.integers(2, 5), replace=False):
                    self.add("venous_beading", (8, 12), int(quadrant), radius=(0.35, 0.6))
            else:
                for quadrant in self.rng.choice(4, size=self.rng.integers(1, 3), replace=False):
                    for _ in range(self.rng.integers(2, 4)):
                        self.add("irma", (70, 110), int(quadrant), radius=(0.35, 0.75))

    def proliferative(self) -> None:
        self.moderate()
        signs = self.rng.choice(4, size=self.rng.integers(1, 3), replace=False, p=[0.35, 0.35, 0.2, 0.1])
        for sign in signs:
            if sign == 0:
                self.add("neovascularisation_disc", (90, 130), at=self.disc)
            elif sign == 1:
                for _ in range(self.rng.integers(1, 3)):
                    self.add("neovascularisation_elsewhere", (90, 140), radius=(0.4, 0.7))
            elif sign == 2:
                self.add("preretinal", (90, 170), radius=(0.2, 0.6))
            else:
                self.add("vitreous", (200, 320), radius=(0.1, 0.4))


def plan(grade: int, rng: np.random.Generator, nasal: int, disc: tuple[float, float]) -> list[Lesion]:
    """Draw the lesions of one eye of `grade`; the ICDR rules then grade the ledger to the same value."""
    eye = Plan(rng, nasal, disc)
    if grade == 1:
        eye.microaneurysms(3, 9)
    elif grade == 2:
        eye.moderate()
    elif grade == 3:
        eye.severe()
    elif grade == 4:
        eye.proliferative()
    return eye.lesions


class Canvas:
    """Draws lesions onto an RGB image `factor` times larger than the output."""

    def __init__(self, image: Image.Image, factor: int, radius: float, rng: np.random.Generator):
        self.image, self.factor, self.radius, self.rng = image, factor, radius, rng
        self.centre = image.size[0] / 2

    def xy(self, x: float, y: float) -> tuple[float, float]:
        return self.centre + x * self.radius, self.centre + y * self.radius

    def width(self, lesion: Lesion) -> float:
        """Drawn diameter, canvas px."""
        return max(lesion.size / 512 * 2 * self.radius, FLOOR_PX[lesion.kind] * self.factor)

    def draw(self, lesions: list[Lesion]) -> None:
        """Composite soft and hard layers in depth order: white, yellow, red, dark red."""
        layers = {colour: Image.new("L", self.image.size) for colour in (WHITE, YELLOW, RED, DARK_RED, CRIMSON)}
        pens = {colour: ImageDraw.Draw(layer) for colour, layer in layers.items()}
        used: set[tuple[int, int, int]] = set()
        for lesion in lesions:
            used.add(getattr(self, "_" + lesion.kind.split("_")[0])(lesion, pens))
        for colour, layer in layers.items():
            if colour in used:
                self.image.paste(colour, mask=layer)

    def _disc(self, pen: ImageDraw.ImageDraw, x: float, y: float, d: float, fill: int, stretch: float = 1.0) -> None:
        pen.ellipse((x - d / 2 * stretch, y - d / 2, x + d / 2 * stretch, y + d / 2), fill=fill)

    def _microaneurysm(self, lesion: Lesion, pens: dict) -> tuple[int, int, int]:
        x, y = self.xy(lesion.x, lesion.y)
        self._disc(pens[DARK_RED], x, y, self.width(lesion), int(self.rng.uniform(165, 240)))
        return DARK_RED

    _dot = _microaneurysm

    def _blot(self, lesion: Lesion, pens: dict) -> tuple[int, int, int]:
        x, y = self.xy(lesion.x, lesion.y)
        d = self.width(lesion)
        for _ in range(3):  # three overlapping discs give an uneven outline
            dx, dy = self.rng.normal(0, d / 7, 2)
            self._disc(pens[DARK_RED], x + dx, y + dy, d * 0.75, int(self.rng.uniform(150, 210)))
        return DARK_RED

    def _flame(self, lesion: Lesion, pens: dict) -> tuple[int, int, int]:
        x, y = self.xy(lesion.x, lesion.y)
        d = self.width(lesion)
        angle = math.atan2(lesion.y, lesion.x)  # along the nerve fibres, towards the centre
        dx, dy = d * math.cos(angle), d * math.sin(angle)
        pens[DARK_RED].line((x - dx, y - dy, x + dx, y + dy), fill=190, width=max(1, round(d * 0.5)))
        return DARK_RED

    def _exudate(self, lesion: Lesion, pens: dict) -> tuple[int, int, int]:
        """A hard-edged cluster: several small bright spots in a ring or heap."""
        x, y = self.xy(lesion.x, lesion.y)
        spread = lesion.size / 512 * 2 * self.radius
        spot = max(4 / 512 * 2 * self.radius, FLOOR_PX["exudate"] * self.factor)
        for _ in range(int(self.rng.integers(5, 12))):
            a, r = self.rng.uniform(0, 2 * math.pi), spread / 2 * self.rng.uniform(0.4, 1)
            self._disc(pens[YELLOW], x + r * math.cos(a), y + r * math.sin(a), spot * self.rng.uniform(0.8, 1.4), 225)
        return YELLOW

    def _cotton(self, lesion: Lesion, pens: dict) -> tuple[int, int, int]:
        x, y = self.xy(lesion.x, lesion.y)
        d = self.width(lesion)
        for scale, fill in ((1.2, 60), (0.9, 120), (0.6, 185)):  # feathery: three fading discs
            self._disc(pens[WHITE], x, y, d * scale, fill, stretch=1.3)
        return WHITE

    def _venous(self, lesion: Lesion, pens: dict) -> tuple[int, int, int]:
        """Beads on a vein: a string of swellings that follows the arcade around the centre."""
        d = self.width(lesion)
        r, a = math.hypot(lesion.x, lesion.y), math.atan2(lesion.y, lesion.x)
        pitch = 1.15 * d / (r * self.radius)
        for k in range(-3, 4):
            x, y = self.xy(r * math.cos(a + k * pitch), r * math.sin(a + k * pitch))
            self._disc(pens[DARK_RED], x, y, d * (1.0 if k % 2 else 0.62), 215)
        return DARK_RED

    def _tangle(self, lesion: Lesion, pen: ImageDraw.ImageDraw, turns: int, fill: int) -> None:
        """A smooth random curve inside the lesion's disc: sums of a few incommensurate sines."""
        x, y = self.xy(lesion.x, lesion.y)
        r = lesion.size / 512 * self.radius
        t = np.linspace(0, 2 * math.pi, 16 * turns)
        phase = self.rng.uniform(0, 2 * math.pi, 4)
        px = x + r * (0.6 * np.sin(turns * t + phase[0]) + 0.4 * np.sin((turns + 1) * 0.7 * t + phase[1]))
        py = y + r * (0.6 * np.cos((turns - 1) * t + phase[2]) + 0.4 * np.sin((turns + 2) * 0.6 * t + phase[3]))
        width = max(1, round(max(2 / 512 * 2 * self.radius, FLOOR_PX[lesion.kind] * self.factor)))
        pen.line(list(np.stack([px, py], 1).ravel()), fill=fill, width=width, joint="curve")

    def _irma(self, lesion: Lesion, pens: dict) -> tuple[int, int, int]:
        self._tangle(lesion, pens[RED], turns=2, fill=215)
        return RED

    def _neovascularisation(self, lesion: Lesion, pens: dict) -> tuple[int, int, int]:
        self._tangle(lesion, pens[CRIMSON], turns=4, fill=240)
        return CRIMSON

    def _preretinal(self, lesion: Lesion, pens: dict) -> tuple[int, int, int]:
        """Boat-shaped: blood settles under gravity below a flat fluid level."""
        x, y = self.xy(lesion.x, lesion.y)
        d = self.width(lesion)
        pens[DARK_RED].chord((x - d / 2, y - d / 2, x + d / 2, y + d / 2), 0, 180, fill=235)
        return DARK_RED

    def _vitreous(self, lesion: Lesion, pens: dict) -> tuple[int, int, int]:
        """A cloud: many translucent discs."""
        x, y = self.xy(lesion.x, lesion.y)
        d = self.width(lesion)
        for fill in range(60, 180, 15):
            dx, dy = self.rng.normal(0, d / 5, 2)
            self._disc(pens[DARK_RED], x + dx, y + dy, d * self.rng.uniform(0.3, 0.6), fill, stretch=1.4)
        return DARK_RED
