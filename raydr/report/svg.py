"""A little SVG: elements from names and attributes, escaped; scales; axis ticks.

Horizontal positions are percentages of the figure's width and texts have fixed sizes, so a figure
reflows from a phone to a printed page without its labels shrinking.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

from markupsafe import Markup


def tag(name: str, *children: str, **attributes: object) -> Markup:
    """<name attribute="value">children</name>; `_` in attribute names becomes `-`, None is left out."""
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(number(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{shown}>{''.join(children)}</{name}>")


def text(content: str, **attributes: object) -> Markup:
    return tag("text", escape(content), **attributes)


def title(content: str) -> Markup:
    """What hovering over the parent element shows."""
    return tag("title", escape(content))


def number(value: object) -> str:
    """Floats with two decimals at most: a page holds thousands of them."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def figure(children: Iterable[str], height: float, label: str) -> Markup:
    """A figure of full width and `height` px; `label` is what a screen reader says instead."""
    return tag("svg", *children, class_="figure", role="img", aria_label=label, width="100%", height=height)


@dataclass(frozen=True)
class Scale:
    """Maps data [low, high] to percent of the width, `margin` % on either side left free."""

    low: float
    high: float
    margin: float = 1.5

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.margin + (100 - 2 * self.margin) * share

    def x(self, value: float) -> str:
        return f"{self(value):.2f}%"

    def ticks(self, most: int = 6) -> list[float]:
        """Round values inside the scale, at most `most`, in steps of 1, 2 or 5 times a power of ten."""
        span = self.high - self.low
        for power in range(-4, 5):
            for step in (1, 2, 5):
                size = step * 10.0**power
                if span / size < most:
                    first = math.ceil(self.low / size - 1e-9)
                    return [round(i * size, 6) for i in range(first, math.floor(self.high / size + 1e-9) + 1)]
        return []


def around(values: Iterable[float], pad: float = 0.06) -> Scale:
    """A scale that holds all finite `values` with a little room."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    room = max((high - low) * pad, 1e-3)
    return Scale(low - room, high + room)
