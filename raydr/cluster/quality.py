"""`raydr quality OUT`: realism and diversity of the images of each generator and grade -> report/quality.json.

Needs no Ray session: at most MOST images a set are read, embedded where this runs (its GPU, if it has one) and compared
with the training photographs of the grade. The validation photographs, compared in the same way, say what a perfect
generator would get.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raydr import schema, selection, shards, terminal
from raydr.cluster import ensemble
from raydr.config import Recipe
from raydr.errors import MissingInput
from raydr.grades import GRADES
from raydr.identity import rng_of
from raydr.images import decode
from raydr.storage import Run
from raydr.trainset.choose import columns_of, name_of
from raydr.trainset.write import with_images

RESULT = "report/quality.json"
# Images and photographs of a set that are compared: the kernel matrices of 2,000 are 32 MB each.
MOST = 2000
BATCH = 64
REAL_COLUMNS = ["image_id", "split", "fold", "grade"]
SAMPLE_COLUMNS = ["sample_id", "index", "blank", "valid_fundus", "nearest_distance", "score"]

Embed = Callable[[list[bytes], int], np.ndarray]


def run(recipe: Recipe, target: Run, weights: str | None = None) -> dict[str, Any]:
    """Compare, store and return {features, features_id, dimensions, band, quality: {generator_id: {grade: ...}}}.

    Features are those of the run's audit members, else of its scorers; with `weights`, a file, InceptionV3's.
    """
    done = shards.commits(target, "synthetic")
    if not done:
        raise MissingInput(f"{target.url} holds no synthetic images: run `raydr synthesize` first, or check --out")
    extract, about = features(recipe, target, weights)
    groups: dict[tuple[str, int], dict[str, shards.Commit]] = {}
    for key, record in done.items():
        groups.setdefault(name_of(key), {})[key] = record
    grades = sorted({grade for _, grade in groups})
    total = sum(min(MOST, sum(record.rows for record in records.values())) for records in groups.values())
    with terminal.bar("quality", total, "images") as bar:
        seen = 0

        def embed(encoded: list[bytes], px: int) -> np.ndarray:
            nonlocal seen
            parts = []
            for start in range(0, len(encoded), BATCH):
                parts.append(extract(np.stack([decode(data, px) for data in encoded[start : start + BATCH]])))
                seen += len(parts[-1])
                bar.to(seen, total=max(seen, total))  # photographs come on top
            return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)

        found: dict[str, dict[str, Any]] = {}
        # Photographs are brought to the side of the images: a sharper picture would be told by its sharpness.
        photographs: dict[tuple[int, int], dict[str, np.ndarray]] = {}
        for (generator_id, grade), records in sorted(groups.items()):
            rows, encoded = samples(target, records)
            px = decode(encoded[0]).shape[0]
            if (grade, px) not in photographs:
                photographs[grade, px] = {
                    part: embed(list(_photographs(target, recipe.fold, part, grade)), px)
                    for part in ("train", "validation")
                }
            images, real = embed(encoded, px), photographs[grade, px]
            low, high = recipe.sweep.band
            score = np.asarray(rows["score"])
            in_band = np.asarray(rows["usable"]) & (score >= low) & (score <= high)
            found.setdefault(generator_id, {})[str(grade)] = {
                "kind": generator_id.split("-")[0],
                **compare(images, real["train"]),
                "in_band": compare(images[in_band], real["train"]),
                "reference": compare(real["validation"], real["train"]),
            }
            about["dimensions"] = images.shape[1]
    assert set(grades) <= set(GRADES)
    result = {"format": 1, **about, "band": list(recipe.sweep.band), "most": MOST, "quality": found}
    target.replace_json(RESULT, result)
    return result


def features(recipe: Recipe, target: Run, weights: str | None) -> tuple[Callable[[np.ndarray], np.ndarray], dict]:
    """(what embeds pixels, its name)."""
    import torch

    from raydr.grading import features as spaces

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if weights:
        return spaces.inception(weights, device), {"features": "InceptionV3", "features_id": "inception-v3-compat 2048"}
    ensemble_id = ensemble.require(recipe, target)
    role = "audit" if any(member.role == "audit" for member in recipe.ensemble.members) else "score"
    judges = ensemble.load(recipe, target, ensemble_id, role, device)
    return spaces.GraderFeatures(judges), {"features": f"graders ({role})", "features_id": ensemble_id}


def compare(images: np.ndarray, photographs: np.ndarray) -> dict[str, Any]:
    """`grading.quality.quality` as JSON values; of sets that are too small their sizes alone."""
    from raydr.grading.quality import quality

    found = quality(images, photographs)
    return asdict(found) if found else {"num_images": len(images), "num_photographs": len(photographs), "kid": None}


def samples(target: Run, records: dict[str, shards.Commit]) -> tuple[pa.Table, list[bytes]]:
    """The first MOST samples by index (SAMPLE_COLUMNS and `usable`), and their encoded images."""
    table, keys = columns_of(target, records, schema.SYNTHETIC, SAMPLE_COLUMNS)
    known = [record.extra["threshold"] for record in records.values() if record.extra.get("threshold") is not None]
    good = selection.usable(table, max(known, default=None))
    table = table.append_column("usable", pa.array(good)).append_column("shard", keys.cast(pa.string()))
    table = table.sort_by("index").slice(0, MOST)
    # Shard by shard, as `with_images` reads them.
    table = table.sort_by([("shard", "ascending"), ("index", "ascending")])
    return table, [found["image"] for _, found in with_images(target, table, "synthetic", "sample_id", [])]


def _photographs(target: Run, fold: int | None, part: str, grade: int) -> Iterator[bytes]:
    """Encoded photographs of one part and grade, at most MOST, drawn by a fixed seed."""
    records = shards.commits(target, "real")
    table, keys = columns_of(target, records, schema.REAL, REAL_COLUMNS)
    rows = selection.part_of(table, part, fold)
    rows = rows[np.asarray(pc.fill_null(table["grade"], -1))[rows] == grade]
    rows = np.sort(rng_of("quality", part, grade).permutation(rows)[:MOST])
    chosen = table.append_column("shard", keys.cast(pa.string())).take(rows)
    for _, found in with_images(target, chosen, "real", "image_id", []):
        yield found["image"]


def show(result: dict[str, Any]) -> None:
    """Print one row a generator and grade."""

    def number(entry: dict[str, Any], name: str) -> str:
        return "–" if entry.get(name) is None else f"{entry[name]:.3f}"

    rows = []
    for generator_id, entries in result["quality"].items():
        for grade, entry in entries.items():
            kid = f"{number(entry, 'kid')} ± {number(entry, 'kid_error')}"
            shares = [number(entry, name) for name in ("precision", "recall", "coverage", "diversity")]
            sizes = [str(entry["num_images"]), str(entry["num_photographs"])]
            rows.append([generator_id, grade, *sizes, kid, *shares, number(entry["reference"], "kid")])
    columns = ["generator", "grade", "images", "photographs", "KID", "precision", "recall", "coverage", "diversity"]
    caption = f"Features: {result['features']}. Reference: validation photographs against the training ones."
    terminal.table("Images against training photographs", [*columns, "reference KID"], rows, caption)
