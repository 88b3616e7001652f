"""The report as one HTML file: no network, no framework, readable for as long as browsers read HTML."""

import json
import math
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from raydr.config import Recipe
from raydr.errors import UserError
from raydr.grades import NAMES
from raydr.metrics import SIGHT_THREATENING
from raydr.record import restore
from raydr.report import extras, figures, heatmap, judges, palette, tables
from raydr.report.data import Part, load
from raydr.report.gallery import address, audit_pictures, pictures
from raydr.report.progress import Rates, progress
from raydr.storage import Run

PAGE, RESULTS = "report/index.html", "report/results.json"
TEMPLATES = Path(__file__).parent / "templates"
# Terms of the training logs that get a figure.
CURVES = {
    "instance": "instance loss",
    "prior": "prior loss",
    "ecc": "ECC loss",
    "validation": "validation loss",
    "ecc_share": "gradient share of the ECC term",
    "ecc_acceptance": "ECC acceptance",
}
KIND_COLOURS = {"plain": "var(--arm-band)", "ecc": "var(--arm-ecc)"}


def write(run: Run, recipe: dict[str, Any] | None = None) -> str:
    """Write `report/index.html` and `report/results.json` of `run`; returns where the page is.

    `recipe` is the resolved recipe as a dict (default: the run's own, from recipe.json); its `report`
    part says how many bootstrap draws and thumbnails. Stages that have not run yet leave a sentence
    saying which command makes them. Raises MissingInput without a recipe, and what reading a run raises.
    """
    recipe = recipe or run.read_json("recipe.json")["recipe"]
    html, results = render(run, recipe)
    run.replace_json(RESULTS, results)
    run.replace(PAGE, html.encode())
    return str(run.path(PAGE)) if run.local else f"{run.url}/{PAGE}"


def render(run: Run, recipe: dict[str, Any], rates: Rates | None = None) -> tuple[str, dict[str, Any]]:
    """(the page, the value of results.json). With `rates` it is live: it shows how far the run is, and asks its server
    for a newer version of itself."""
    parts = load(run, recipe["num_replicates"])
    results = tables.from_parts(run, recipe, parts)
    shown = pictures(parts, results["nearest"], recipe["report"]["gallery"])
    template = environment().get_template("index.html")
    text = json.dumps(results["recipe"], indent=2)
    return template.render(
        r=results,
        pictures=shown,
        out=address(run),
        live=rates is not None,
        progress=_progress(run, results["recipe"], rates, parts) if rates else None,
        recipe_text=text,
        curves=training_curves(results),
        audit_pairs=audit_pictures(parts, results["data_audit"]),
        commands=extras.commands(results["recipe"], address(run)),
        **_words(),
    ), results


def _progress(run: Run, recipe: dict[str, Any], rates: Rates, parts: list[Part]) -> dict[str, Any] | None:
    """None for a recipe of another version of raydr: what it asks for is not known."""
    try:
        asked = restore(Recipe, recipe)
    except (UserError, TypeError, ValueError):
        return None
    return progress(asked, run, rates, [trial.row for part in parts for trial in part.trials])


def environment() -> jinja2.Environment:
    """Templates with autoescape on; `source(name)` puts a style sheet or script in as it is."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    found.globals["source"] = lambda name: Markup((TEMPLATES / name).read_text())
    found.globals["fig"] = figures
    found.filters |= {
        "percent": figures.percent,
        "hundred": lambda value, digits=1: "—" if value is None else f"{100 * value:.{digits}f}",
        "signed": figures.signed,
        "arm_colour": palette.arm,
        "emphasised": _emphasised,
        "words": lambda name: str(name).replace("_", " "),
        "duration": duration,
        "money": money,
        "having": lambda columns, found: [
            key for key in columns if any(key in row for t in found for row in t.values())
        ],
        "size": lambda count: f"{count / 2**30:.2f} GiB" if count else "—",
        "p_value": lambda p: "—" if p is None else "< .001" if p < 0.001 else f"{p:.3f}".lstrip("0"),
    }
    return found


def training_curves(results: dict[str, Any]) -> list[dict[str, Any]]:
    """A figure's lines for every term that some generator logged at two steps or more; severe grades dashed."""
    found = []
    for term, name in CURVES.items():
        lines = []
        for generator, log in results["curves"].items():
            points = _block_means([[entry["step"], entry[term]] for entry in log if entry.get(term) is not None])
            made = results["acceptance"].get(generator, {})
            kind = next((row["kind"] for row in made.values()), generator.split("-")[0])
            grades = sorted(int(grade) for grade in made)
            if len(points) > 1:
                words = ", ".join(NAMES[grade] for grade in grades)
                lines.append(
                    {
                        "points": points,
                        "title": f"{generator} ({kind}{', ' + words if words else ''})",
                        "kind": kind,
                        "colour": KIND_COLOURS.get(kind, "var(--arm-other)"),
                        "dashed": bool(grades) and grades[0] >= SIGHT_THREATENING,
                    }
                )
        lines.sort(key=lambda line: (line["kind"] != "plain", line["dashed"]))
        if lines:
            found.append({"name": name, "lines": lines, "from_zero": term in ("ecc_acceptance", "ecc_share")})
    return found


def _block_means(points: list[list[float]], most: int = 40) -> list[list[float]]:
    """At most `most` points, each the mean of a block, at its last step: single steps are mostly noise."""
    size = -(-len(points) // most) or 1
    blocks = [points[start : start + size] for start in range(0, len(points), size)]
    return [[block[-1][0], sum(value for _, value in block) / len(block)] for block in blocks]


def _words() -> dict[str, Any]:
    return {
        "css_palette": Markup(palette.css()),
        "grade_names": NAMES,
        "map_metrics": heatmap.METRICS,
        "quality_columns": extras.QUALITY_COLUMNS,
        "external_columns": extras.EXTERNAL_COLUMNS,
        "few": judges.FEW,
    }


def duration(seconds: float | None) -> str:
    """Seconds as a person says them: 8.1 s, 2 min 19 s, 3 h 05 min."""
    if seconds is None:
        return "—"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _emphasised(sentence: str) -> Markup:
    """A sentence of the answer with its difference in bold."""
    before, colon, after = sentence.partition(": ")
    if not colon:
        return escape(sentence)
    number, bracket, rest = after.partition(" (")
    if number[:1] in "+−0123456789":  # a number stays on one line; a phone is narrower than some words
        number = number.replace(" ", "\u00a0")
    return Markup("{}: <strong>{}</strong>{}{}").format(before, number, bracket, rest)


def money(cost: dict[str, Any], amount: float | None) -> str:
    """An amount in the currency of a stage's `cost`: two digits that count, however small an image's share."""
    if amount is None:
        return "—"
    digits = 2 if amount >= 1 or amount == 0 else 1 - math.floor(math.log10(amount))
    return f"{amount:.{digits}f}\u00a0{cost['currency']}"
