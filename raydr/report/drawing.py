"""The page's own SVG figures as standalone files: flattened to shapes, then written as SVG, PDF or PNG.

No plotting library and no browser: a figure on paper is the figure on the page, in the light palette.
Understands what `svg` and `figures` produce (percentages, classes of style.css, nested boxes, one clip
by x) and nothing else.
"""

import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

from raydr.report import palette

TEMPLATES = Path(__file__).parent / "templates"
Point = tuple[float, float]


@dataclass(frozen=True)
class Shape:
    """kind: line (open path), polygon, circle, text or image; coordinates in px, y downwards."""

    kind: str
    points: tuple[Point, ...]
    fill: str | None = None
    stroke: str | None = None
    stroke_width: float = 1.0
    opacity: float = 1.0
    dashes: tuple[float, ...] = ()
    # Of circles: radius; of texts: font size; of images: side. All px.
    size: float = 0.0
    text: str = ""
    bold: bool = False
    anchor: str = "start"
    # JPEG bytes of an image.
    data: bytes = b""


@dataclass(frozen=True)
class Drawing:
    width: float
    height: float
    shapes: tuple[Shape, ...]


@dataclass(frozen=True)
class _Box:
    """Where an element's coordinates lie: origin, size that percentages refer to, px per unit."""

    x: float
    y: float
    width: float
    height: float
    sx: float = 1.0
    sy: float = 1.0

    def at(self, x: str, y: str) -> Point:
        return self.x + self.sx * _length(x, self.width), self.y + self.sy * _length(y, self.height)


def flatten(markup: str, width: float = 640.0, margin: float = 14.0) -> Drawing:
    """Shapes of a figure of `svg.figure`, laid out at `width` px."""
    root = ElementTree.fromstring(markup)
    height = float(root.get("height", "0"))
    shapes: list[Shape] = []
    clips = {clip.get("id"): clip[0] for clip in root.iter("clipPath")}
    _walk(root, _Box(margin, margin, width - 2 * margin, height), {}, None, clips, shapes)
    return Drawing(width, height + 2 * margin, tuple(shapes))


def _walk(
    parent: ElementTree.Element,
    box: _Box,
    inherited: dict[str, str],
    clip: tuple[float, float] | None,
    clips: dict[str | None, ElementTree.Element],
    shapes: list[Shape],
) -> None:
    for element in parent:
        style = inherited | _style(element)
        if element.tag in ("title", "clipPath") or style.get("display") == "none":
            continue
        if element.tag == "g":
            reference = re.fullmatch(r"url\(#(.+)\)", element.get("clip-path", ""))
            inner = clip
            if reference:
                area = clips[reference[1]]
                left, _ = box.at(area.get("x", "0"), "0")
                inner = (left, left + box.sx * _length(area.get("width", "0"), box.width))
            _walk(element, box, style, inner, clips, shapes)
        elif element.tag == "svg":
            _, _, across, down = (float(part) for part in element.get("viewBox", "").split())
            x, y = box.at(element.get("x", "0"), element.get("y", "0"))
            width, height = _length(element.get("width", "0"), box.width), float(element.get("height", "0"))
            _walk(element, _Box(x, y, across, down, width / across, height / down), style, clip, clips, shapes)
        else:
            shape = _shape(element, box, style)
            kept = _clipped(shape, clip) if clip else shape
            shapes += [kept] if kept else []


def _shape(element: ElementTree.Element, box: _Box, style: dict[str, str]) -> Shape:
    def at(x: str, y: str) -> Point:
        return box.at(element.get(x, "0"), element.get(y, "0"))

    opacity = float(style.get("opacity", 1))
    fill = _colour(style.get("fill", "var(--ink)"))
    filled = opacity * float(style.get("fill-opacity", 1))
    stroked = Shape(
        "line",
        (),
        stroke=_colour(style.get("stroke")),
        stroke_width=float(style.get("stroke-width", "1").removesuffix("px")),
        opacity=opacity * float(style.get("stroke-opacity", 1)),
        dashes=tuple(float(part) for part in style.get("stroke-dasharray", "").split()),
    )
    if element.tag == "line":
        return replace(stroked, points=(at("x1", "y1"), at("x2", "y2")))
    if element.tag == "polyline":
        pairs = (point.split(",") for point in element.get("points", "").split())
        return replace(stroked, points=tuple(box.at(x, y) for x, y in pairs))
    if element.tag == "circle":
        radius = float(element.get("r", "0"))
        return replace(stroked, kind="circle", points=(at("cx", "cy"),), fill=fill, opacity=filled, size=radius)
    if element.tag == "rect":
        x, y = at("x", "y")
        width, height = (box.at(element.get("width", "0"), element.get("height", "0"))[i] for i in (0, 1))
        right, bottom = x + width - box.x, y + height - box.y
        return Shape("polygon", ((x, y), (right, y), (right, bottom), (x, bottom)), fill, opacity=filled)
    assert element.tag == "text", element.tag
    return Shape(
        "text",
        (at("x", "y"),),
        fill,
        opacity=filled,
        size=float(style.get("font-size", "13px").removesuffix("px")),
        text="".join(element.itertext()).replace("\u00a0", " "),
        bold=int(style.get("font-weight", "400")) >= 600,
        anchor=element.get("text-anchor", "start"),
    )


def _clipped(shape: Shape, clip: tuple[float, float]) -> Shape | None:
    """A rectangle's part between two x; None where nothing is left."""
    left, right = max(shape.points[0][0], clip[0]), min(shape.points[1][0], clip[1])
    top, bottom = shape.points[0][1], shape.points[2][1]
    return replace(shape, points=((left, top), (right, top), (right, bottom), (left, bottom))) if right > left else None


def _length(value: str, whole: float) -> float:
    return whole * float(value[:-1]) / 100 if value.endswith("%") else float(value)


def _style(element: ElementTree.Element) -> dict[str, str]:
    classes = set(element.get("class", "").split())
    found: dict[str, str] = {}
    for selector, properties in _rules():
        if selector <= classes:
            found |= properties
    if element.get("stroke-dasharray"):
        found["stroke-dasharray"] = element.get("stroke-dasharray", "")
    return found | _properties(element.get("style", ""))


@cache
def _rules() -> tuple[tuple[frozenset[str], dict[str, str]], ...]:
    """(classes, properties) of style.css's `svg.figure .class` rules outside media queries, in order."""
    sheet = (TEMPLATES / "style.css").read_text().split("@media")[0]
    found = re.findall(r"^svg\.figure ([^{]+)\{([^}]*)\}", sheet, re.MULTILINE)
    return tuple(
        (frozenset(one.strip().removeprefix("svg.figure ").strip(".").split(".")), _properties(body))
        for selectors, body in found
        for one in selectors.split(",")
        if one.strip().removeprefix("svg.figure ").startswith(".")
    )


def _properties(text: str) -> dict[str, str]:
    pairs = (part.split(":", 1) for part in text.split(";") if ":" in part)
    return {name.strip(): value.strip() for name, value in pairs}


def _colour(value: str | None) -> str | None:
    """ "#rrggbb" of the light palette; None for none."""
    if value is None or value == "none":
        return None
    variable = re.fullmatch(r"var\(--(.+)\)", value)
    return palette.COLOURS[variable[1]][0] if variable else value
