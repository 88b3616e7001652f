"""The data set card of a run: where its photographs come from, on what terms, how many, what was dropped and why."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from raydr.fundus.audit import Audit, class_balance
from raydr.fundus.readers.registry import READERS
from raydr.grades import NAMES

PHANTOM_TERMS = "Apache-2.0; procedural phantoms, no patient behind them"


@dataclass(frozen=True)
class Source:
    """One `raydr ingest` call."""

    reader: str  # key of READERS, or "phantom"
    path: str
    dataset: str
    role: str | None  # prior, external or as published
    num_listed: int  # rows the reader found
    num_rejected: int  # label rows and files it could not use

    @property
    def terms(self) -> str:
        return PHANTOM_TERMS if self.reader == "phantom" else READERS[self.reader].terms


def card(real: pa.Table, quarantine: pa.Table, sources: Sequence[Source], audit: Audit | None = None) -> dict[str, Any]:
    """The card as JSON-ready values.

    Args:
        real: rows of schema.REAL; only dataset, split, grade, gradable, patient_id and stratum are read.
        quarantine: rows of schema.QUARANTINE.
        audit: adds its counts and warnings.
    """
    columns = {name: real.column(name).to_pylist() for name in ("dataset", "split", "grade", "stratum")}
    reasons: dict[str, list[str]] = {}
    for entry in quarantine.select(["key", "reason"]).to_pylist():
        reasons.setdefault(entry["reason"], []).append(entry["key"])
    return {
        "num_photographs": real.num_rows,
        "num_graded": real.num_rows - real.column("grade").null_count,
        "num_ungradable": sum(not gradable for gradable in real.column("gradable").to_pylist()),
        "num_patients": len(set(real.column("patient_id").drop_null().to_pylist())),
        "num_dropped": quarantine.num_rows,
        "sources": [{**asdict(source), "terms": source.terms} for source in sources],
        "counts": [
            {"dataset": b.dataset, "split": b.split, "grades": list(b.counts), "ungraded": b.num_ungraded}
            for b in class_balance(columns)
        ],
        "strata": [
            {"dataset": dataset, "stratum": stratum, "count": count}
            for (dataset, stratum), count in sorted(
                Counter(zip(columns["dataset"], columns["stratum"], strict=True)).items(), key=str
            )
            if stratum is not None
        ],
        "dropped": [
            {"reason": reason, "count": len(keys), "examples": sorted(keys)[:5]}
            for reason, keys in sorted(reasons.items())
        ],
        "audit": None
        if audit is None
        else {"counts": audit.counts, "leaks": len(audit.leaks), "warnings": audit.warnings},
    }


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; `|` in cells is escaped."""

    def line(cells: Sequence[object]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)])


def markdown(card: Mapping[str, Any]) -> str:
    """The card for people."""
    sources = [
        (
            s["dataset"],
            s["reader"],
            s["path"],
            s["role"] or "as published",
            s["num_listed"],
            s["num_rejected"],
            s["terms"],
        )
        for s in card["sources"]
    ]
    counts = [(c["dataset"], c["split"], *c["grades"], c["ungraded"]) for c in card["counts"]]
    parts = [
        "# Data set card",
        f"{card['num_photographs']} photographs, {card['num_graded']} graded, {card['num_ungradable']} ungradable, "
        f"{card['num_patients']} patients known, {card['num_dropped']} entries dropped.",
        "Fundus photographs are biometric data: the terms below are their publishers', and pass on to whatever is "
        "trained on them.",
        "## Sources",
        table(("data set", "reader", "path", "role", "listed", "rejected", "terms"), sources),
        "## Photographs by grade",
        table(("data set", "split", *(f"{grade} {name}" for grade, name in enumerate(NAMES)), "none"), counts),
    ]
    if card["strata"]:
        strata = [(s["dataset"], s["stratum"], s["count"]) for s in card["strata"]]
        parts += ["## Acquisition sources", table(("data set", "stratum", "photographs"), strata)]
    parts.append("## Dropped")
    dropped = [(d["reason"], d["count"], ", ".join(f"`{key}`" for key in d["examples"])) for d in card["dropped"]]
    parts.append(table(("reason", "count", "examples"), dropped) if dropped else "Nothing.")
    if card["audit"] is not None:
        parts += ["## Audit", table(("finding", "count"), list(card["audit"]["counts"].items()))]
        parts += [f"- {warning}" for warning in card["audit"]["warnings"]]
    return "\n\n".join(parts) + "\n"
