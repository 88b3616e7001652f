"""The tables of `raydr report --figures DIR` as rows of text, from the value of results.json."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from raydr.grades import NAMES
from raydr.report import extras

Table = list[list[str]]


def table_rows(results: dict[str, Any]) -> Iterator[tuple[str, Table]]:
    """(name, rows) of the tables, the first row being the head."""
    if results["table"]:
        keys = list(results["table"][0]["metrics"])
        head = ["arm", "trials", *(f"{key} {what}" for key in keys for what in ("mean", "std"))]
        head += [f"recall_{grade} {what}" for grade in range(len(NAMES)) for what in ("mean", "std")]
        rows = [head]
        for row in results["table"]:
            values = [row["metrics"][key] for key in keys] + row["recall"]
            rows.append(
                [row["name"], str(row["num_trials"]), *(_number(v[w]) for v in values for w in ("mean", "std"))]
            )
        yield "metrics", rows
        yield (
            "arms",
            [
                ["arm", "balanced accuracy", "accuracy at DDR priors", *(f"recall {name}" for name in NAMES)],
                *(
                    [
                        row["name"],
                        *(
                            _plus_minus(v)
                            for v in (
                                row["metrics"]["balanced_accuracy"],
                                row["metrics"]["accuracy_at_ddr_priors"],
                                *row["recall"],
                            )
                        ),
                    ]
                    for row in results["table"]
                ),
            ],
        )
    if results["contrasts"]:
        keys = [
            "a",
            "b",
            "family",
            "difference",
            "low",
            "high",
            "p",
            "adjusted_p",
            "minimum_detectable_difference",
            "verdict",
        ]
        yield "contrasts", [keys, *([_number(row[key]) for key in keys] for row in results["contrasts"])]
    accepted = [
        [
            generator,
            row["kind"],
            NAMES[int(grade)],
            *(_number(row[key]) for key in ("made", "accepted", "share", "mean_score")),
        ]
        for generator, grades in results["acceptance"].items()
        for grade, row in grades.items()
    ]
    if accepted:
        yield "acceptance", [["generator", "kind", "grade", "made", "accepted", "share", "mean score"], *accepted]
    yield from _others(results)


def _others(results: dict[str, Any]) -> Iterator[tuple[str, Table]]:
    """The page's further tables, each where the run has rows for it: one line a row, nested values spread out."""
    shown, over = (*extras.QUALITY_COLUMNS, "kid_error"), ("difference", "low", "high")
    quality = [
        {
            "generator": generator,
            "grade": int(grade),
            **{key: row.get(key) for key in shown},
            **{f"{part} kid": row.get(part, {}).get("kid") for part in ("in_band", "reference")},
        }
        for generator, grades in results["quality"].items()
        for grade, row in grades.items()
    ]
    external = [
        {
            "dataset": dataset,
            "arm": arm,
            **{key: row.get(key) for key in extras.EXTERNAL_COLUMNS},
            **{f"over oversampling {key}": (row.get("over_baseline") or {}).get(key) for key in over},
        }
        for dataset, arms in results["external"].items()
        for arm, row in arms.items()
    ]
    found = {
        "photographs": results["photographs"],
        "members": results["members"],
        "gap_closed": results["gap_closed"],
        "strata": results["strata"],
        "probes": results["probes"],
        "rescored": results["rescored"],
        "quality": quality,
        "external": external,
    }
    for name, records in found.items():
        if records:
            yield name, spread(records)


def spread(records: Sequence[Mapping[str, Any]]) -> Table:
    """A head and a line a record: a nested value under "outer inner", five numbers under the names of the grades.

    Columns that no record has a value for are left out.
    """
    flat = [dict(_leaves(record)) for record in records]
    head = [
        key
        for key in dict.fromkeys(key for row in flat for key in row)
        if any(row.get(key) is not None for row in flat)
    ]
    return [head, *([_number(row.get(key)) for key in head] for row in flat)]


def _leaves(record: Mapping[str, Any], outer: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in record.items():
        name = f"{outer} {key}".strip()
        if isinstance(value, list) and len(value) == len(NAMES):
            value = dict(zip(NAMES, value, strict=True))
        if isinstance(value, Mapping):
            yield from _leaves(value, name)
        elif key == "grade":
            yield name, NAMES[value]
        elif not isinstance(value, list):
            yield name, value


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def _plus_minus(value: dict[str, float | None]) -> str:
    mean, std = value["mean"], value["std"]
    return "" if mean is None else f"{100 * mean:.1f}" + ("" if std is None else f" ± {100 * std:.1f}")
