"""`raydr report --figures DIR`: every figure as SVG, PDF and PNG, every table as CSV and LaTeX."""

import base64
import csv
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from raydr.grades import NAMES
from raydr.report import figures, files, heatmap, palette, tables
from raydr.report.data import load
from raydr.report.drawing import Drawing, Shape, flatten
from raydr.report.export_tables import Table, table_rows
from raydr.report.gallery import pictures
from raydr.report.page import training_curves
from raydr.storage import Run

WRITERS: dict[str, Callable[[Drawing], bytes]] = {"svg": files.svg, "pdf": files.pdf, "png": files.png}
WIDTH = 640.0  # px: 6.7 inches on paper


def write(run: Run, folder: Path, recipe: dict[str, Any] | None = None) -> list[Path]:
    """Write all figures and tables of `run` into `folder` (made if need be); returns what was written.

    `recipe` as in `page.write`. A phantom run's figures carry the words "phantom data".
    """
    recipe = recipe or run.read_json("recipe.json")["recipe"]
    parts = load(run, recipe["num_replicates"])
    results = tables.from_parts(run, recipe, parts)
    shown = pictures(parts, [], recipe["report"]["gallery"])
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, drawing in drawings(results, shown):
        labelled = _label(drawing, "phantom data") if results["phantom"] else drawing
        for ending, writer in WRITERS.items():
            written.append(folder / f"{_safe(name)}.{ending}")
            written[-1].write_bytes(writer(labelled))
    for name, rows in table_rows(results):
        for ending, text in (("csv", _csv(rows)), ("tex", _latex(rows))):
            written.append(folder / f"{_safe(name)}.{ending}")
            written[-1].write_text(text)
    return written


def drawings(results: dict[str, Any], shown: dict[str, Any]) -> Iterator[tuple[str, Drawing]]:
    """(name, drawing) of every figure that the run has data for."""
    table = results["table"]
    if table:
        yield "levels", flatten(figures.levels(table), WIDTH)
        yield "recalls", _with_legend(flatten(figures.recalls(table), WIDTH), [row["name"] for row in table])
    if results["contrasts"]:
        yield "contrasts", flatten(figures.forest(results["contrasts"]), WIDTH)
    for row in table:
        yield f"confusion-{row['name']}", _matrix(row["confusion"], "true", "predicted")
        yield f"reliability-{row['name']}", flatten(figures.reliability(row), WIDTH / 2.5)
    for found in results["maps"]:
        yield f"map-{found['arm']}", _map(found)
    for index, group in enumerate(results["scores"]["groups"]):
        drawn = figures.histogram(group, results["scores"]["stops"], results["band"], f"f{index}")
        yield f"scores-{group['kind']}-{group['grade']}", flatten(drawn, WIDTH / 1.6)
    for kind, counts in results["verdicts"].items():
        yield f"verdicts-{kind}", _matrix(counts, "made for", "seen as")
    for curve in training_curves(results):
        drawn = figures.curves(curve["lines"], curve["name"], curve["from_zero"])
        yield f"training-{curve['name']}", flatten(drawn, WIDTH / 1.6)
    if shown["strips"]:
        yield "samples", _strips(shown["strips"])


def _matrix(counts: list[list[int]], rows: str, columns: str) -> Drawing:
    """Row percentages of a 5 x 5 matrix as tinted cells; rows without a count are left out."""
    cell, left, top = 44.0, 130.0, 40.0
    kept = [grade for grade, row in enumerate(counts) if sum(row)]
    shapes = [_text(left - 8, 16, f"{rows}, percent", "end"), _text(left, 16, f"{columns}:")]
    shapes += [_text(left + (g + 0.5) * cell, top - 8, str(g), "middle") for g in range(5)]
    for line, grade in enumerate(kept):
        total = sum(counts[grade])
        shapes.append(_text(left - 8, top + (line + 0.5) * cell + 4, f"{grade} {NAMES[grade]}", "end"))
        for column, count in enumerate(counts[grade]):
            place = (left + column * cell, top + line * cell)
            shapes += _cell(place, cell, cell, count / total, f"{100 * count / total:.0f}", column == grade)
    return Drawing(left + 5 * cell + 14, top + len(kept) * cell + 14, tuple(shapes))


def _map(found: dict[str, Any]) -> Drawing:
    """Validation balanced accuracy by band (rows) and ratio (columns)."""
    width, height, left, top = 78.0, 38.0, 110.0, 40.0
    values = found["values"]["balanced_accuracy"]
    known = [value for row in values for value in row if value is not None]
    low, high = min(known), max(known)
    shapes = [_text(left, 16, f"ratio; {heatmap.METRICS['balanced_accuracy']} on validation, percent")]
    shapes += [_text(left + (i + 0.5) * width, top - 8, f"{r:g}", "middle") for i, r in enumerate(found["ratios"])]
    for line, band in enumerate(found["bands"]):
        words = " – ".join("any" if end is None else f"{end:g}" for end in band)
        shapes.append(_text(left - 8, top + (line + 0.5) * height + 4, words, "end"))
        for column, value in enumerate(values[line]):
            if value is not None:
                share = (value - low) / (high - low) if high > low else 0.0
                place = (left + column * width, top + line * height)
                shapes += _cell(place, width, height, share, f"{100 * value:.1f}", value == high)
    size = (left + len(found["ratios"]) * width + 14, top + len(found["bands"]) * height + 14)
    return Drawing(*size, tuple(shapes))


def _cell(place: tuple[float, float], width: float, height: float, share: float, words: str, bold: bool) -> list[Shape]:
    (x, y), gap = place, 1.0
    corners = (
        (x + gap, y + gap),
        (x + width - gap, y + gap),
        (x + width - gap, y + height - gap),
        (x + gap, y + height - gap),
    )
    tint = Shape("polygon", corners, palette.COLOURS["heat"][0], opacity=round(share * palette.HEAT_MAX[0], 3))
    return [tint, _text(x + width / 2, y + height / 2 + 4.5, words, "middle", bold)]


def _strips(strips: list[dict[str, Any]]) -> Drawing:
    """The paper's figure: a row a grade, high scores left, under each its score and runner-up grade."""
    side, left, row_height = 68.0, 84.0, 108.0
    shapes = []
    for line, strip in enumerate(strips):
        top = 12 + line * row_height
        shapes.append(_text(0 + 12, top + side / 2, NAMES[strip["grade"]], bold=True))
        for column, item in enumerate(strip["items"]):
            x = left + column * (side + 6)
            data = base64.b64decode(item["src"].split(",", 1)[1])
            shapes.append(Shape("image", ((x, top),), size=side, data=data))
            shapes.append(_text(x, top + side + 13, f"{item['score']:.2f}", bold=True, size=11))
            runner_up = f"{NAMES[item['runner_up']]} {item['runner_up_probability']:.2f}"
            shapes.append(_text(x, top + side + 25, runner_up, size=9))
    return Drawing(left + 8 * (side + 6) + 8, 12 + len(strips) * row_height, tuple(shapes))


def _with_legend(drawing: Drawing, names: list[str]) -> Drawing:
    shapes, x, y = list(drawing.shapes), 14.0, drawing.height + 4
    for name in names:
        width = 26 + 7.2 * len(name)
        if x + width > drawing.width:
            x, y = 14.0, y + 18
        colour = palette.COLOURS.get(f"arm-{name.split(' (')[0]}", palette.COLOURS["arm-other"])[0]
        shapes += [Shape("circle", ((x + 5, y - 4),), colour, size=5), _text(x + 14, y, name.replace("_", " "))]
        x += width
    return Drawing(drawing.width, y + 12, tuple(shapes))


def _label(drawing: Drawing, words: str) -> Drawing:
    note = _text(drawing.width - 6, drawing.height + 8, words, "end", size=10)
    return Drawing(drawing.width, drawing.height + 14, (*drawing.shapes, note))


def _text(x: float, y: float, words: str, anchor: str = "start", bold: bool = False, size: float = 12) -> Shape:
    return Shape("text", ((x, y),), palette.COLOURS["ink"][0], size=size, text=words, anchor=anchor, bold=bold)


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-")


def _csv(rows: Table) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def _latex(rows: Table) -> str:
    """A booktabs tabular."""

    def escaped(cell: str) -> str:
        text = re.sub(r"([&%$#_{}])", r"\\\1", cell.replace("\\", r"\textbackslash "))
        return text.replace("±", r"$\pm$").replace("−", "$-$")

    lines = [" & ".join(escaped(cell) for cell in row) + r" \\" for row in rows]
    body = [r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
    return "\n".join([rf"\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}", *body, r"\end{tabular}", ""])
