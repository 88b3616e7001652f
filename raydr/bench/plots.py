"""Scaling curves as standalone SVG, drawn with the report's own elements."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from raydr.report import palette
from raydr.report.svg import tag, text

WIDTH, HEIGHT, LEFT, TOP = 640.0, 320.0, 90.0, 44.0
Point = tuple[float, float]


def figures(scaling: dict[str, Any]) -> dict[str, str]:
    """{name: SVG} of what there is to draw."""
    found = {}
    if scaling.get("actors"):
        rows = scaling["actors"]
        measured = [(row["actors"], row["images_per_second"]) for row in rows]
        perfect = [(row["actors"], row["images_per_second"] / row["efficiency"]) for row in rows]
        found["actors"] = chart(
            "Images a second against generator actors", {"measured": measured, "perfect": perfect}, log=True
        )
    if scaling.get("plan"):
        rows = scaling["plan"]
        memory = [(row["planned_rows"], row["driver_rss_bytes"] / 2**20) for row in rows]
        found["plan"] = chart("Driver's resident MiB against planned rows", {"driver": memory}, log_x=True)
    if scaling.get("memory"):
        curves = {
            who: [(seconds, size / 2**20) for seconds, size in scaling["memory"][who]["curve"]]
            for who in ("driver", "worker")
        }
        found["memory"] = chart("Resident MiB against seconds of an ingest", curves)
    return found


def chart(title: str, lines: Mapping[str, Sequence[Point]], log: bool = False, log_x: bool = False) -> str:
    """Lines over common axes from zero (or, with `log`, of powers of two and ten); one colour and end label each."""
    across, up = (math.log if log or log_x else float), (math.log if log else float)
    points = [(across(x), up(y)) for line in lines.values() for x, y in line]
    low_x, high_x = min(x for x, _ in points), max(x for x, _ in points)
    low_y = min(y for _, y in points) if log else 0.0
    high_y = max(y for _, y in points)
    plot_width, plot_height = WIDTH - LEFT - 110, HEIGHT - TOP - 40

    def at(x: float, y: float) -> Point:
        return (
            LEFT + plot_width * (across(x) - low_x) / ((high_x - low_x) or 1),
            TOP + plot_height * (1 - (up(y) - low_y) / ((high_y - low_y) or 1)),
        )

    ink, soft = palette.COLOURS["ink"][0], palette.COLOURS["soft"][0]
    colours = [palette.COLOURS[f"arm-{arm}"][0] for arm in ("oversampling", "ecc_band", "band", "ecc")]
    parts = [
        tag("rect", width=WIDTH, height=HEIGHT, fill=palette.COLOURS["surface"][0]),
        text(title, x=12, y=24, fill=ink, font_size=15, font_weight="bold"),
    ]
    ends = sorted({x for line in lines.values() for x, _ in line})
    shown = ends if len(ends) <= 6 else [ends[0], ends[len(ends) // 2], ends[-1]]
    parts += [
        text(short(x), x=at(x, lines_end(lines))[0], y=HEIGHT - 16, fill=soft, font_size=12, text_anchor="middle")
        for x in shown
    ]
    for (name, line), colour in zip(lines.items(), colours, strict=False):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in line))
        parts.append(tag("polyline", points=path, fill="none", stroke=colour, stroke_width=2))
        for x, y in line if len(line) <= 12 else []:
            across_px, up_px = at(x, y)
            parts.append(tag("circle", cx=across_px, cy=up_px, r=3, fill=colour))
        last_x, last_y = at(*line[-1])
        label = f"{name} {short(line[-1][1])}"
        parts.append(text(label, x=last_x + 8, y=last_y + 4, fill=colour, font_size=12))
        first_y = at(*line[0])[1]
        parts.append(text(short(line[0][1]), x=LEFT - 10, y=first_y + 4, fill=soft, font_size=12, text_anchor="end"))
    return str(
        tag(
            "svg",
            *parts,
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}",
            font_family="sans-serif",
        )
    )


def lines_end(lines: Mapping[str, Sequence[Point]]) -> float:
    """Some y of the data: x positions do not depend on it, logarithms only want it positive."""
    return next(iter(lines.values()))[-1][1]


def short(value: float) -> str:
    """Three digits: 0.25, 12.3, 1200, 10M."""
    for size, name in ((1e6, "M"), (1e3, "k")):
        if value >= 10 * size:
            return f"{value / size:.3g}{name}"
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
