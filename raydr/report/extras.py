"""What other commands left beside a run, as the report shows it: audit, cost, quality, external sets; its commands."""

import dataclasses
import shlex
from typing import Any

from raydr import recipes, spending
from raydr.report.data import Part, optional_json
from raydr.storage import Run

AUDIT, QUALITY, EXTERNAL = "report/audit.json", "report/quality.json", "report/external.json"
# Sentences and pairs of the audit on the page; the audit's own page and audit.json hold all.
MAX_SENTENCES, MAX_PAIRS = 20, 12
# Columns of the tables, where some row has them.
QUALITY_COLUMNS = {
    "num_images": "images",
    "num_photographs": "photographs",
    "kid": "KID",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "diversity": "diversity",
}
EXTERNAL_COLUMNS = {
    "num_images": "images",
    "num_graders": "graders",
    "balanced_accuracy": "balanced<br>accuracy",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "quadratic_weighted_kappa": "quadratic<br>kappa",
    "macro_auc": "macro AUC",
    "referable_sensitivity": "referable<br>sensitivity",
    "referable_specificity": "referable<br>specificity",
    "referable_auc": "referable<br>AUC",
    "sight_threatening_auc": "sight-thr.<br>AUC",
    "expected_calibration_error": "ECE",
}


def data_audit(parts: list[Part]) -> dict[str, Any] | None:
    """What `raydr audit` found, of the first part that it looked at; None where it has not run.

    {part, num_images, counts, leaks, warnings, pairs, num_pairs}: sentences and pairs are the worst of all.
    """
    for part in parts:
        found = optional_json(part.run, AUDIT)
        if found is None:
            continue
        uses = {"validation": "choosing", "test": "judging", "external": "judging"}

        def rank(pair: dict[str, Any], uses: dict[str, str] = uses) -> tuple[bool, bool, str, str]:
            a, b = (uses.get(split, "training") for split in pair["splits"])
            grades = pair["grades"]
            conflicting = None not in grades and grades[0] != grades[1]
            return a == b, not conflicting, pair["a"], pair["b"]

        pairs = sorted(found["duplicates"], key=rank)
        return {
            "part": part.replicate,
            "num_images": found["num_images"],
            "counts": found["counts"],
            "num_leaks": len(found["leaks"]),
            "leaks": found["leaks"][:MAX_SENTENCES],
            "num_warnings": len(found["warnings"]),
            "warnings": found["warnings"][:MAX_SENTENCES],
            "num_pairs": len(pairs),
            "pairs": [pair | {"worst": not rank(pair)[0] or not rank(pair)[1]} for pair in pairs[:MAX_PAIRS]],
        }
    return None


def external(run: Run) -> dict[str, Any]:
    """{data set: {arm: metrics}} of `raydr evaluate`; {} where it has not run."""
    return optional_json(run, EXTERNAL) or {}


def quality(run: Run, parts: list[Part]) -> tuple[dict[str, Any], dict[str, Any]]:
    """({generator_id: {grade: numbers}}, {"features", "band"}) of `raydr quality`; both {} where it has not run."""
    values: dict[str, Any] = {}
    about: dict[str, Any] = {}
    for place in {item.url: item for item in (run, *(part.run for part in parts))}.values():
        found = optional_json(place, QUALITY)
        if found:
            values |= found["quality"]
            about = {name: found[name] for name in ("features", "band")}
    return values, about


def costs(run: Run, parts: list[Part], stages: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """{stage: node_seconds, gpu_seconds, cost (None where a node's price is not known), currency, checked}."""
    found = {}
    for stage in stages:
        whole = spending.Spend(checked=True)
        for place in {item.url: item for item in (run, *(part.run for part in parts))}.values():
            spent = spending.total(place, stage)
            if spent.node_seconds:
                spending.add(whole, spent)
        if whole.node_seconds:
            found[stage] = {
                "node_seconds": whole.node_seconds,
                "gpu_seconds": whole.gpu_seconds,
                "cost": whole.known,
                "currency": whole.currency,
                "checked": whole.checked,
            }
    return found


def add_cost(acceptance: dict[str, dict[str, Any]], synthesis: dict[str, Any] | None) -> None:
    """The cost of synthesis shared out by seconds of work: `cost_per_accepted` of each generator and grade."""
    rows = [row for grades in acceptance.values() for row in grades.values()]
    seconds = sum(row.get("seconds", 0.0) for row in rows)
    if not seconds or synthesis is None or synthesis["cost"] is None:
        return
    for row in rows:
        if row["accepted"] and "seconds" in row:
            row["cost_per_accepted"] = synthesis["cost"] * row["seconds"] / seconds / row["accepted"]


def commands(recipe: dict[str, Any], out: str) -> list[str]:
    """The commands that make a run again; where `recipe` (of recipe.json) differs from the named one, as flags."""
    name, source = recipe["name"], recipe["ingest"]["source"]
    flags = []
    if name in recipes.RECIPES:
        flags = _differences(_plain(dataclasses.asdict(recipes.named(name))), recipe)
    made = f"raydr run --recipe {name} --out {out}"
    first = [] if source == "phantom" else [f"raydr ingest {source} PATH --recipe {name} --out {out}"]
    return [*first, " ".join([made, *flags]), f"raydr verify {out}", f"raydr report {out}"]


def _differences(named: Any, found: Any, name: str = "") -> list[str]:
    """Flags, as tyro reads them, that turn the value `named` into `found`."""
    if isinstance(named, dict) and isinstance(found, dict):
        keys = [key for key in named if key in found and key != "replicate"]
        prefix = f"{name}." if name else ""
        return [flag for key in keys for flag in _differences(named[key], found[key], f"{prefix}{key}")]
    tables = isinstance(named, list) and isinstance(found, list) and any(isinstance(item, dict) for item in found)
    if tables and len(named) == len(found):
        pairs = enumerate(zip(named, found, strict=True))
        return [flag for k, (a, b) in pairs for flag in _differences(a, b, f"{name}.{k}")]
    if named == found:
        return []
    option = f"--{name.replace('_', '-')}"
    if isinstance(found, bool):
        head, _, tail = option.rpartition(".")
        return [option if found else f"{head}.no-{tail}"]
    return [" ".join([option, *(shlex.quote(str(item)) for item in _leaves(found))])]


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    return [leaf for item in value for leaf in _leaves(item)] if isinstance(value, list) else [value]


def _plain(value: Any) -> Any:
    """Tuples as lists, as JSON gives them back."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
