"""Pictures of the page: which samples are shown, as thumbnails inside the HTML.

Chosen along the score, not for their looks: half of a group's thumbnails evenly by rank, half evenly by
score, so that rare scores are seen too. The page says how many of how many are shown.
"""

import base64
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raydr import images, schema, shards
from raydr.report import samples
from raydr.report.data import Part
from raydr.storage import Run

# Side of a thumbnail, px (smaller photographs stay as they are), and what all may weigh: base64 adds a
# third, which leaves the page below its 15 MB.
THUMBNAIL_PX = 128
MAX_BYTES = 7_000_000
# Columns of the paper's figure, from high scores to low.
STRIP = 8


def pictures(parts: list[Part], nearest: list[dict[str, Any]], per_group: int) -> dict[str, Any]:
    """{"gallery": items, "strips": rows of items, "pairs": nearest pairs with both pictures, "num_samples": n}.

    An item holds id, kind, grade, score, p (members x 5), seed, index, run (for `raydr regenerate`) and
    src (a data URI); `per_group` thumbnails per kind and grade over all parts.
    """
    gallery: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    for part in parts:
        closest = [row for row in nearest if row["part"] == part.replicate]
        items = _chosen(part, max(1, per_group // len(parts)))
        wanted = {item["id"] for item in items} | {row["sample_id"] for row in closest}
        shown = _thumbnails(part.run, "synthetic", schema.SYNTHETIC, "sample_id", wanted)
        real = _thumbnails(part.run, "real", schema.REAL, "image_id", {row["nearest_image_id"] for row in closest})
        gallery += [item | {"src": shown[item["id"]]} for item in items if item["id"] in shown]
        pairs += [
            row | {"src": shown[row["sample_id"]], "nearest_src": real[row["nearest_image_id"]]}
            for row in closest
            if row["sample_id"] in shown and row["nearest_image_id"] in real
        ]
    gallery = _within_budget(gallery)
    gallery.sort(key=lambda item: (item["grade"], item["kind"], -item["score"]))
    return {
        "gallery": gallery,
        "strips": _strips(gallery),
        "pairs": sorted(pairs, key=lambda row: row["nearest_distance"]),
        "num_samples": sum(part.samples.num_rows for part in parts),
    }


def audit_pictures(parts: list[Part], found: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The audit's worst pairs with both pictures (data URIs `a_src`, `b_src`), but for photographs that are gone."""
    if found is None or not found["pairs"]:
        return []
    (part,) = (part for part in parts if part.replicate == found["part"])
    wanted = {pair[side] for pair in found["pairs"] for side in ("a", "b")}
    shown = _thumbnails(part.run, "real", schema.REAL, "image_id", wanted)
    return [
        pair | {"a_src": shown[pair["a"]], "b_src": shown[pair["b"]]}
        for pair in found["pairs"]
        if pair["a"] in shown and pair["b"] in shown
    ]


def address(run: Run) -> str:
    """How commands on the page name a run: a bucket whole, of a folder the last two or one parts.

    The folders above belong to whoever ran it, not to whoever reads the page.
    """
    if run.local is None:
        return run.url
    name = PurePosixPath(run.url)
    return f"{name.parent.name}/{name.name}" if name.name.startswith("replicate-") else name.name


def _chosen(part: Part, count: int) -> list[dict[str, Any]]:
    items = []
    for (kind, grade), rows in samples.groups(part.samples, "kind", "grade").items():
        of_group = part.samples.take(rows)
        of_group = of_group.filter(pa.array(samples.usable(of_group)))
        picked = of_group.take(_spread(samples.scores(of_group), count))
        probabilities = samples.probabilities(picked)
        for row, members in zip(picked.to_pylist(), probabilities, strict=True):
            items.append(
                {
                    "id": row["sample_id"],
                    "kind": kind,
                    "grade": grade,
                    "score": round(row["score"], 4),
                    "p": [[round(float(p), 3) for p in member] for member in members],
                    "seed": str(row["seed"]),  # 63 bits: JavaScript's numbers would round it
                    "index": row["index"],
                    "run": address(part.run),
                }
            )
    return items


def _spread(scores: np.ndarray, count: int) -> np.ndarray:
    """Row numbers, at most `count`: half evenly by rank, the rest nearest to evenly spaced scores."""
    if len(scores) <= count:
        return np.arange(len(scores))
    ranked = np.argsort(scores, kind="stable")
    by_rank = ranked[np.linspace(0, len(scores) - 1, (count + 1) // 2).round().astype(int)]
    grid = np.linspace(scores.min(), scores.max(), count - len(by_rank))
    by_score = [int(np.abs(scores - value).argmin()) for value in grid]
    return np.unique([*by_rank, *by_score])


def _thumbnails(run: Run, table: str, table_schema: pa.Schema, key: str, wanted: set[str]) -> dict[str, str]:
    """{id: data URI} of the rows whose `key` is among `wanted`."""
    if not wanted:
        return {}
    found = shards.read(run, table, table_schema, [key, "image"], pc.field(key).isin(sorted(wanted)), required=False)
    return {
        name.as_py(): data_uri(images.decode(data.as_py()))
        for name, data in zip(found[key], found["image"], strict=True)
    }


def data_uri(pixels: np.ndarray) -> str:
    """A JPEG of at most `THUMBNAIL_PX` px as a data URI."""
    data = images.jpeg(pixels, min(THUMBNAIL_PX, pixels.shape[0]), quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


def _within_budget(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every k-th item, where all would be heavier than `MAX_BYTES`."""
    total = sum(len(item["src"]) for item in items)
    return items[:: -(-total // MAX_BYTES)] if total > MAX_BYTES else items


def _strips(gallery: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The paper's figure: per grade one row of samples, high scores left, each with its runner-up grade.

    Of the plain generator where there is one: it shows what scores tell before any conditioning.
    """
    rows = []
    for grade in sorted({item["grade"] for item in gallery}):
        of_grade = [item for item in gallery if item["grade"] == grade]
        kind = "plain" if any(item["kind"] == "plain" for item in of_grade) else of_grade[0]["kind"]
        chosen = [item for item in of_grade if item["kind"] == kind]
        chosen = [chosen[i] for i in _evenly(len(chosen), STRIP)]
        rows.append({"grade": grade, "kind": kind, "items": [item | _runner_up(item) for item in chosen]})
    return rows


def _evenly(count: int, most: int) -> Iterable[int]:
    return range(count) if count <= most else np.linspace(0, count - 1, most).round().astype(int).tolist()


def _runner_up(item: dict[str, Any]) -> dict[str, Any]:
    """The grade other than the intended one that the members' mean puts highest."""
    mean = np.mean(item["p"], axis=0)
    mean[item["grade"]] = -1
    return {"runner_up": int(mean.argmax()), "runner_up_probability": float(mean.max())}
