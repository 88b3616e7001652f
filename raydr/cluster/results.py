"""What a run came to: the line of each stage, the report, and the table of arms in the terminal."""

from typing import Any

from raydr import terminal
from raydr.errors import DamagedData, MissingInput
from raydr.storage import Run


def describe(stage: str, summary: dict[str, Any]) -> str:
    """The line of result of a stage."""
    if stage == "ingest" and "source" in summary:
        source = summary["source"]
        told = f"{source['dataset']}: {source['kept']} of {source['listed']} entries, {source['added']} added now"
        return f"{told}; {summary['photographs']} photographs in all"
    if stage == "ingest":
        train = summary["counts"].get("train", [])
        return f"{summary['photographs']} photographs, training counts by grade {'/'.join(map(str, train))}"
    if stage == "ensemble":
        scores = [member["balanced_accuracy"] for member in summary["trained"] if "balanced_accuracy" in member]
        told = f", held-out balanced accuracy {', '.join(f'{score:.2f}' for score in scores)}" if scores else ""
        whole = summary.get("ensemble") or {}
        told += f", {whole['balanced_accuracy']:.2f} together on validation" if "balanced_accuracy" in whole else ""
        return f"{summary['members']} graders{told}"
    if stage == "finetune":
        names = ", ".join(name.rsplit("-", 1)[0] for name in summary["generators"])
        cost = summary.get("ecc_cost")
        told = f", a refresh of ECC took {cost:.1f}x the training between two" if cost else ""
        return f"{len(summary['generators'])} generators ({names}){told}"
    if stage == "synthesize":
        made = summary["images"]
        inside = sum(row["accepted"] for row in summary["targets"])
        return f"{made} images, {inside} in the band ({inside / max(1, made):.0%})"
    return f"{summary['trials']} trials ({summary['run']} run now)"


def write_report(target: Run) -> str:
    """Write report/index.html and results.json, print the table of arms; returns the page's address."""
    from raydr.cluster import telemetry
    from raydr.report import page

    if not target.exists("recipe.json"):
        raise MissingInput(f"There is no run in {target.url}: name the --out of a run, or start one with `raydr run`")
    record = target.read_json("recipe.json")
    # A run of an older raydr can still be reported on: its recipe is shown, not restored.
    if not isinstance(record, dict) or "num_replicates" not in (record.get("recipe") or {}):
        raise DamagedData(f"recipe.json in {target.url} is no recipe of raydr: restore it, or use another --out")
    with telemetry.measured() as usage:
        where = page.write(target)
    spent = target.read_json("logs/stages.json") if target.exists("logs/stages.json") else {}
    spent["report"] = {"seconds": usage.seconds, "peak_bytes": usage.peak_bytes}
    target.replace_json("logs/stages.json", spent)
    show(target.read_json("report/results.json"))
    terminal.line("report", where, usage.seconds)
    return where


def show(results: dict[str, Any]) -> None:
    """Print the table of arms and the answer, as results.json has them."""
    rows = []
    wide = terminal.console.width >= 100  # in 80 columns the recalls are means alone: cut cells would say nothing
    for row in results["table"]:
        cells = [_cell(row["metrics"][key]) for key in ("balanced_accuracy", "accuracy_at_ddr_priors")]
        rows.append([row["name"], *cells, *(_cell(value, wide) for value in row["recall"])])
    if rows:
        title = "Arms on the test set, % (mean ± standard deviation over seeds)"
        if results["phantom"]:
            title += "\nPhantom data: tests the software, not the clinic"
        columns = ["arm", "bal. acc.", "DDR acc.", *(f"{'recall' if wide else 'rec.'} {grade}" for grade in range(5))]
        terminal.table(title, columns, rows)
    for sentence in [*results["answer"]["sentences"], *results["answer"]["caveats"]]:
        terminal.note(sentence)


def _cell(value: Any, spread: bool = True) -> str:
    if isinstance(value, dict):
        mean, std = value.get("mean"), value.get("std")
        if mean is None:
            return "–"
        return f"{100 * mean:.1f} ± {100 * std:.1f}" if spread and std is not None else f"{100 * mean:.1f}"
    return "–" if value is None else f"{100 * value:.1f}"
