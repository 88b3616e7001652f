"""The report's figures as inline SVG, each a function of a part of `results.json`."""

from typing import Any

from markupsafe import Markup

from raydr.grades import NAMES
from raydr.report import palette
from raydr.report.svg import Scale, around, figure, tag, text, title

ROW = 50  # px: a line of text and the track below it


def percent(value: float | None, digits: int = 1) -> str:
    return "—" if value is None else f"{100 * value:.{digits}f}\u00a0%"


def signed(value: float | None, digits: int = 1) -> str:
    if value is None:
        return "—"
    shown = f"{100 * value:+.{digits}f}".replace("-", "−")
    return shown if shown.strip("+−0.") else f"{0:.{digits}f}"


def levels(table: list[dict[str, Any]]) -> Markup:
    """Balanced accuracy of every arm: a dot a trial, the mean, its interval; a dashed line at the baseline."""
    values = [value for row in table for _, _, value in row["values"]]
    scale = around([*values, *(end for row in table for end in row["interval"] or [])])
    base = next((row["metrics"]["balanced_accuracy"]["mean"] for row in table if row["arm"] == "oversampling"), None)
    bottom = len(table) * ROW + 8
    parts = _grid(scale, 20, bottom, lambda tick: f"{100 * tick:g} %")
    if base is not None:
        parts.append(tag("line", x1=scale.x(base), x2=scale.x(base), y1=20, y2=bottom, class_="baseline"))
    for index, row in enumerate(table):
        top, colour = index * ROW, palette.arm(row["name"])
        y = top + 34
        parts.append(text(row["name"].replace("_", " "), x="0", y=top + 18, class_="name halo"))
        mean = row["metrics"]["balanced_accuracy"]
        spread = "" if mean["std"] is None else f" ± {100 * mean['std']:.1f}"
        parts.append(
            text(f"{100 * mean['mean']:.1f}{spread} %", x="100%", y=top + 18, class_="value halo", text_anchor="end")
        )
        if row["interval"]:
            low, high = (scale.x(end) for end in row["interval"])
            parts.append(tag("line", x1=low, x2=high, y1=y, y2=y, class_="interval", style=f"stroke:{colour}"))
        for replicate, seed, value in row["values"]:
            hint = title(f"replicate {replicate}, seed {seed}: {percent(value)}")
            parts.append(tag("circle", hint, cx=scale.x(value), cy=y, r=3.5, class_="seed", style=f"fill:{colour}"))
        x = scale.x(mean["mean"])
        parts.append(tag("line", x1=x, x2=x, y1=y - 9, y2=y + 9, class_="mean", style=f"stroke:{colour}"))
    spoken = "; ".join(f"{row['name']} {percent(row['metrics']['balanced_accuracy']['mean'])}" for row in table)
    return figure(parts, bottom + 22, f"Balanced accuracy on the test set by arm: {spoken}.")


def forest(contrasts: list[dict[str, Any]]) -> Markup:
    """Differences with their intervals around a zero line; rings are single replicates."""
    scale = around([0.0, *(row[end] for row in contrasts for end in ("low", "high"))])
    bottom = len(contrasts) * ROW + 8
    parts = _grid(scale, 20, bottom, lambda tick: signed(tick, 0 if abs(tick * 100 % 1) < 1e-6 else 1))
    parts.append(tag("line", x1=scale.x(0), x2=scale.x(0), y1=14, y2=bottom, class_="zero"))
    for index, row in enumerate(contrasts):
        top, colour = index * ROW, palette.arm(row["a"])
        y = top + 34
        words = f"{row['a']} − {row['b']}".replace("_", " ")
        between = tag("tspan", f" ({signed(row['low'])} to {signed(row['high'])})", class_="wide")
        parts += [
            text(words, x="0", y=top + 18, class_="name halo"),
            tag("text", signed(row["difference"]), between, x="100%", y=top + 18, class_="halo", text_anchor="end"),
            tag(
                "line",
                x1=scale.x(row["low"]),
                x2=scale.x(row["high"]),
                y1=y,
                y2=y,
                class_="interval",
                style=f"stroke:{colour}",
            ),
            tag("circle", cx=scale.x(row["difference"]), cy=y, r=5.5, style=f"fill:{colour}"),
        ]
        for value_of in row["per_replicate"] if row["num_replicates"] > 1 else []:
            parts.append(tag("circle", cx=scale.x(value_of), cy=y, r=3, class_="replicate", style=f"stroke:{colour}"))
    spoken = "; ".join(
        f"{row['a']} minus {row['b']} {signed(row['difference'])}, {signed(row['low'])} to {signed(row['high'])} points"
        for row in contrasts
    )
    return figure(parts, bottom + 22, f"Differences in balanced accuracy with intervals: {spoken}.")


def recalls(table: list[dict[str, Any]]) -> Markup:
    """Recall by grade: one track a grade, a dot an arm."""
    scale = Scale(0, 1)
    bottom = len(NAMES) * ROW + 8
    parts = _grid(scale, 20, bottom, lambda tick: f"{100 * tick:g} %")
    for grade, name in enumerate(NAMES):
        top = grade * ROW
        parts.append(text(f"{grade} {name}", x="0", y=top + 18, class_="name halo"))
        parts.append(tag("line", x1=scale.x(0), x2=scale.x(1), y1=top + 34, y2=top + 34, class_="track"))
        for row in table:
            mean = row["recall"][grade]["mean"]
            if mean is not None:
                hint = title(f"{row['name']}: {percent(mean)}")
                colour = palette.arm(row["name"])
                parts.append(
                    tag("circle", hint, cx=scale.x(mean), cy=top + 34, r=6, class_="arm", style=f"fill:{colour}")
                )
    spoken = "; ".join(
        f"{row['name']} " + ", ".join(f"{name} {percent(row['recall'][g]['mean'], 0)}" for g, name in enumerate(NAMES))
        for row in table
    )
    return figure(parts, bottom + 22, f"Recall by grade and arm: {spoken}.")


def histogram(group: dict[str, Any], stops: list[float], band: list[float], key: str, num_bins: int = 50) -> Markup:
    """Scores of one kind and intended grade; the band's part drawn over in colour through a clip that moves.

    `key` is unique on the page. Bin k holds scores in [k, k + 1) / num_bins, the last one 1 too.
    """
    width = (len(stops) - 1) // num_bins
    below = [*group["below"][:-1], group["at_or_below"][-1]]
    counts = [below[(k + 1) * width] - below[k * width] for k in range(num_bins)]
    scale, top, height = Scale(0, 1, margin=2), 12, 92
    most = max([*counts, 1])
    span = scale(1 / num_bins) - scale(0)
    bars = [
        tag(
            "rect",
            x=scale.x(k / num_bins),
            y=top + height * (1 - n / most),
            width=f"{span * 0.86:.2f}%",
            height=height * n / most,
        )
        for k, n in enumerate(counts)
        if n
    ]
    low, high = band
    clip = {"x": scale.x(low), "width": f"{scale(high) - scale(low):.2f}%"}
    parts = [
        tag("clipPath", tag("rect", **clip, y=0, height=top + height, data_band="clip"), id=f"clip-{key}"),
        tag("rect", **clip, y=top, height=height, class_="band", data_band="rect"),
        tag("g", *bars, class_="bars"),
        tag("g", *bars, class_="bars inside", clip_path=f"url(#clip-{key})"),
        tag("line", x1=scale.x(0), x2=scale.x(1), y1=top + height, y2=top + height, class_="axis"),
        text(f"{most} image{'' if most == 1 else 's'}", x=scale.x(0), y=top - 2, class_="tick"),
    ]
    for tick, anchor in ((0, "start"), (0.25, "middle"), (0.5, "middle"), (0.75, "middle"), (1, "end")):
        parts.append(text(f"{tick:g}", x=scale.x(tick), y=top + height + 15, class_="tick", text_anchor=anchor))
    return figure(
        parts, top + height + 20, f"Histogram of {group['below'][-1]} to {group['at_or_below'][-1]} scores from 0 to 1."
    )


def reliability(row: dict[str, Any]) -> Markup:
    """Confidence (x) against the share that is right (y); dot area follows the count."""
    points = row["reliability"]
    total = sum(points["count"]) or 1
    scale, side = Scale(0, 1, margin=5), 150
    height = side - 14
    parts = [tag("line", x1=scale.x(0), x2=scale.x(1), y1=height, y2=8, class_="diagonal")]
    parts.append(tag("line", x1=scale.x(0), x2=scale.x(1), y1=height, y2=height, class_="axis"))
    for count, confidence, right in zip(points["count"], points["confidence"], points["right"], strict=True):
        if count:
            y = height - (height - 8) * right
            hint = title(f"{count} verdicts: confidence {percent(confidence)}, right {percent(right)}")
            radius = 2.5 + 9 * (count / total) ** 0.5
            parts.append(
                tag(
                    "circle",
                    hint,
                    cx=scale.x(confidence),
                    cy=y,
                    r=radius,
                    class_="arm",
                    style=f"fill:{palette.arm(row['name'])}",
                )
            )
    for tick, anchor in ((0, "start"), (0.5, "middle"), (1, "end")):
        parts.append(text(f"{100 * tick:g} %", x=scale.x(tick), y=side, class_="tick", text_anchor=anchor))
    error = percent(row["metrics"]["expected_calibration_error"]["mean"])
    return figure(parts, side + 4, f"Reliability of {row['name']}: expected calibration error {error}.")


def curves(lines: list[dict[str, Any]], label: str, from_zero: bool = False) -> Markup:
    """Training logs: a line {"points": [[step, value], ...], "colour", "dashed", "title"} a generator."""
    steps = [step for line in lines for step, _ in line["points"]]
    values = [value for line in lines for _, value in line["points"]]
    across, up = Scale(min(steps), max(max(steps), min(steps) + 1), margin=0), around(values)
    if from_zero or up.low < 0 <= min(values):  # the margin of what cannot be negative must not be either
        up = Scale(0.0, up.high)
    height, shapes = 120, []
    for line in lines:
        path = [f"{across(x):.2f},{100 - 100 * (y - up.low) / (up.high - up.low):.2f}" for x, y in line["points"]]
        dashes = "5 4" if line["dashed"] else None
        style = f"stroke:{line['colour']}"
        hint = title(line["title"])
        shapes.append(
            tag("polyline", hint, points=" ".join(path), class_="curve", style=style, stroke_dasharray=dashes)
        )
    plot = tag(
        "svg", *shapes, x=0, y=18, width="100%", height=height, viewBox="0 0 100 100", preserveAspectRatio="none"
    )
    parts = [
        tag("line", x1=0, x2="100%", y1=18, y2=18, class_="grid"),
        tag("line", x1=0, x2="100%", y1=height + 18, y2=height + 18, class_="axis"),
        plot,
        text(f"{up.high:.3g}", x=0, y=12, class_="tick"),
        text(f"{up.low:.3g}", x=0, y=height + 33, class_="tick"),
        text(f"step {across.low:g} to {across.high:g}", x="100%", y=height + 33, class_="tick", text_anchor="end"),
    ]
    return figure(parts, height + 38, label)


def _grid(scale: Scale, top: float, bottom: float, label) -> list[Markup]:
    parts = []
    for tick in scale.ticks():
        x = scale.x(tick)
        anchor = "start" if scale(tick) < 4 else "end" if scale(tick) > 96 else "middle"
        parts.append(tag("line", x1=x, x2=x, y1=top, y2=bottom, class_="grid"))
        parts.append(text(label(tick), x=x, y=bottom + 16, class_="tick", text_anchor=anchor))
    return parts
