"""The card of an exported training set: how it was made, from whose photographs, on what terms."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from raydr.grades import NAMES
from raydr.storage import Run
from raydr.trainset.choose import Choice
from raydr.trainset.write import Written

FORMAT = 1
# Terms of the bases that recipes name; a generator's images come under those of its base.
BASE_TERMS = {
    "phantom": "Apache-2.0; the small base that ships with raydr, trained on phantoms",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "CreativeML OpenRAIL-M; its use restrictions pass on",
}
UNKNOWN = "unknown: look them up before you share this"


def optional_json(run: Run, key: str) -> Any:
    """A JSON file of the run, or nothing where no stage has written it."""
    return run.read_json(key) if run.exists(key) else {}


def generators(run: Run, choice: Choice) -> list[dict[str, Any]]:
    """What is known of each generator whose images were taken."""
    found = []
    for name, threshold in choice.generators.items():
        record = optional_json(run, f"generators/{name}/generator.json")
        base = record.get("base")
        found.append(
            {
                "generator_id": name,
                "kind": choice.request.kind,
                "base": base,
                "base_terms": BASE_TERMS.get(base, f"the terms of {base}'s own card" if base else UNKNOWN),
                "base_fingerprint": record.get("base_fingerprint"),
                "dataset": record.get("dataset"),
                "num_photographs_seen": record.get("num_photographs"),
                "guided_by_ensemble_id": record.get("ensemble_id"),
                "memorised_below": threshold,
            }
        )
    return found


def counts(choice: Choice) -> list[dict[str, Any]]:
    """One entry a grade: `choose.Count` with the grade's name and the shortage."""
    return [asdict(count) | {"name": NAMES[count.grade], "shortage": count.shortage} for count in choice.counts]


def card(run: Run, choice: Choice, made_by: Sequence[Mapping[str, Any]], written: Written) -> dict[str, Any]:
    """The card as JSON values; `made_by` as `generators` gives it."""
    record = run.read_json("recipe.json")
    recipe, request = record["recipe"], choice.request
    sources = optional_json(run, "report/dataset-card.json").get("sources", [])
    return {
        "format": FORMAT,
        "what": "training set for grading diabetic retinopathy: photographs, and synthetic images marked as such",
        "phantom": recipe["ingest"]["source"] == "phantom",
        "num_photographs": choice.real.num_rows,
        "num_synthetic": choice.synthetic.num_rows,
        "num_memorised_left_out": sum(count.num_memorised for count in choice.counts),
        "num_unusable_left_out": sum(count.num_unusable for count in choice.counts),
        "selection": {
            "band": list(request.band),
            "ratio": request.ratio,
            "grades": list(request.grades),
            "kind": request.kind,
            "scores_by": list(written.ensemble_ids),
        },
        "counts": counts(choice),
        "generators": list(made_by),
        "sources": [
            {name: source.get(name) for name in ("dataset", "reader", "role", "num_listed", "terms")}
            for source in sources
        ],
        "run": {
            "recipe": recipe["name"],
            "seed": recipe["seed"],
            "fold": recipe["fold"],
            "replicate": recipe["replicate"],
            "fingerprints": record.get("fingerprints", {}),
            "revision": record.get("revision"),
            "versions": record.get("versions", {}),
        },
        "files": written.files,
    }


def shortages(counts: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each grade that got fewer images than were wanted."""
    return [
        f"Grade {count['grade']} ({count['name']}): {count['num_added']} of {count['num_wanted']} wanted images are "
        f"there, {count['shortage']} are missing."
        for count in counts
        if count["shortage"] > 0
    ]


def markdown(card: Mapping[str, Any]) -> str:
    """The card for people."""
    chosen, run = card["selection"], card["run"]
    head = ("grade", "photographs", "wanted", "scored", "in band", "memorised", "blank or no fundus", "added", "short")
    fields = ("num_real", "num_wanted", "num_scored", "num_in_band", "num_memorised", "num_unusable", "num_added")
    rows = [(f"{c['grade']} {c['name']}", *(c[f] for f in fields), c["shortage"]) for c in card["counts"]]
    low, high = chosen["band"]
    parts = [
        "# Training set card",
        f"{card['num_photographs']} photographs and {card['num_synthetic']} synthetic images for grading diabetic "
        "retinopathy. The column `synthetic` tells them apart: keep it, and never evaluate on synthetic images.",
    ]
    if card["phantom"]:
        parts.append("**Phantom data**: every photograph was drawn by a program. It tests software, not the clinic.")
    parts += [
        "## Selection",
        f"Score in [{low:g}, {high:g}] by {', '.join(chosen['scores_by'])}; ratio {chosen['ratio']:g}; "
        f"grades {', '.join(map(str, chosen['grades']))}; the lowest indices first. "
        f"{card['num_memorised_left_out']} images in the band were left out as memorised, "
        f"{card['num_unusable_left_out']} as blank or no fundus.",
        table(head, rows),
        *shortages(card["counts"]),
        "## Generators",
        table(
            ("generator", "base", "tuned on", "photographs seen", "terms of the base"),
            [
                (g["generator_id"], g["base"], g["dataset"], g["num_photographs_seen"], g["base_terms"])
                for g in card["generators"]
            ],
        ),
        "## Sources and terms",
        "Fundus photographs are biometric data. The terms below are their publishers'; they pass on to the photographs "
        "here and to the synthetic images, whose generators were trained on them.",
        table(
            ("data set", "reader", "role", "terms"),
            [(s["dataset"], s["reader"], s["role"] or "as published", s["terms"]) for s in card["sources"]],
        )
        if card["sources"]
        else f"Terms {UNKNOWN}.",
        "## Made by",
        f"raydr {run['versions'].get('raydr', '')}, recipe {run['recipe']}, seed {run['seed']}, fold {run['fold']}, "
        f"replicate {run['replicate']}, revision {run['revision']}. Every file's SHA-256 stands in card.json.",
    ]
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in cells)
