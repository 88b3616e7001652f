"""What the scores of synthetic images say: acceptance, score counts at every slider stop, ensemble verdicts."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raydr import schema, shards
from raydr.grades import NUM_GRADES
from raydr.report.data import Part

# Stops of the band slider: 0, .01, ..., 1. Counting at the stops keeps the page small whatever the
# run's size, and the counts exact.
STOPS = np.round(np.arange(101) / 100, 2)


def usable(samples: pa.Table) -> np.ndarray:
    """Samples that an arm may draw: neither blank, nor no fundus photograph, nor memorised; bool (n,)."""
    return samples["usable"].to_numpy()


def scores(samples: pa.Table) -> np.ndarray:
    """float64 (n,) of the stored float32, rounded to 1e-6 so that a stored 0.7 is inside [0.7, 0.9]."""
    return np.round(samples["score"].to_numpy(zero_copy_only=False).astype(float), 6)


def probabilities(samples: pa.Table) -> np.ndarray:
    """float32 (n, members, 5); of no samples, no members are known."""
    if samples.num_rows == 0:
        return np.empty((0, 0, NUM_GRADES), np.float32)
    rows = samples["probabilities"].combine_chunks()
    flat = rows.flatten().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(samples.num_rows, -1, NUM_GRADES)


def groups(samples: pa.Table, *columns: str) -> dict[tuple, np.ndarray]:
    """{values of `columns`: row numbers}, sorted by the values."""
    if samples.num_rows == 0:
        return {}
    keys = samples.select(columns).append_column("row", pa.array(np.arange(samples.num_rows)))
    grouped = keys.group_by(list(columns)).aggregate([("row", "list")])
    found = {tuple(row[name] for name in columns): np.array(row["row_list"]) for row in grouped.to_pylist()}
    return dict(sorted(found.items(), key=lambda item: str(item[0])))


def acceptance(parts: list[Part], band: tuple[float, float]) -> dict[str, dict[str, Any]]:
    """{generator_id: {grade: made, unusable, of these memorised, accepted within `band`, share, mean score}}."""
    found: dict[str, dict[str, Any]] = {}
    for part in parts:
        for (generator, kind, grade), rows in groups(part.samples, "generator_id", "kind", "grade").items():
            made = part.samples.take(rows)
            score, good = scores(made), usable(made)
            accepted = int((good & (score >= band[0]) & (score <= band[1])).sum())
            found.setdefault(generator, {})[str(grade)] = {
                "kind": kind,
                "replicate": part.replicate,
                "made": len(rows),
                "unusable": int((~good).sum()),
                "memorised": int(made["memorised"].to_numpy().sum()),
                "accepted": accepted,
                "share": accepted / len(rows),
                "mean_score": float(score.mean()),
            }
    return found


def rescored(parts: list[Part], band: tuple[float, float]) -> list[dict[str, Any]]:
    """What other ensembles (`raydr rescore`) say of the same images, usable ones alone: a row an ensemble and grade.

    Scorers that took no part in ECC or in the band (paper 9, "against circularity") show by how much the ensemble in
    the loop flatters its own choice: `accepted_share` and `accepted_score` are theirs of the images that it accepts.
    """
    found = []
    for part in parts:
        table = shards.read(part.run, "scores", schema.SCORES, ["sample_id", "ensemble_id", "score"], required=False)
        at = pc.index_in(table["sample_id"], value_set=part.samples["sample_id"].combine_chunks())
        table = table.append_column("at", at).filter(pc.is_valid(at))
        for (ensemble_id,), mine in groups(table, "ensemble_id").items():
            theirs = table.take(mine)
            of_samples = part.samples.take(theirs["at"])
            judged = of_samples.append_column("theirs", theirs["score"])
            for (generator, kind, grade), rows in groups(judged, "generator_id", "kind", "grade").items():
                one = judged.take(rows)
                good = usable(one)
                own, other = scores(one)[good], np.round(one["theirs"].to_numpy().astype(float), 6)[good]
                accepted, passed = ((value >= band[0]) & (value <= band[1]) for value in (own, other))
                found.append(
                    {
                        "ensemble_id": ensemble_id,
                        "generator_id": generator,
                        "kind": kind,
                        "grade": grade,
                        "replicate": part.replicate,
                        "num_images": len(own),
                        "share": _mean(passed),
                        "own_share": _mean(accepted),
                        "mean_score": _mean(other),
                        "own_mean_score": _mean(own),
                        "accepted_share": _mean(passed[accepted]),
                        "accepted_score": _mean(other[accepted]),
                        "own_accepted_score": _mean(own[accepted]),
                    }
                )
    return found


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def score_counts(parts: list[Part]) -> list[dict[str, Any]]:
    """Per kind and intended grade, over all parts: usable images below, and at or below, each of `STOPS`.

    Images inside [low, high] = at_or_below[high] - below[low], exactly.
    """
    pooled: dict[tuple[str, int], list[np.ndarray]] = {}
    made: dict[tuple[str, int], int] = {}
    for part in parts:
        for (kind, grade), rows in groups(part.samples, "kind", "grade").items():
            of_group = part.samples.take(rows)
            pooled.setdefault((kind, grade), []).append(scores(of_group)[usable(of_group)])
            made[kind, grade] = made.get((kind, grade), 0) + len(rows)
    counts = []
    for kind, grade in sorted(pooled, key=lambda key: (key[1], key[0] != "plain", key[0])):
        values = np.sort(np.concatenate(pooled[kind, grade]))
        counts.append(
            {
                "kind": kind,
                "grade": grade,
                "made": made[kind, grade],
                "below": np.searchsorted(values, STOPS, "left"),
                "at_or_below": np.searchsorted(values, STOPS, "right"),
            }
        )
    return counts


def verdict_matrices(parts: list[Part]) -> dict[str, np.ndarray]:
    """{kind: counts int64 (5, 5)}: intended grade x grade that the ensemble's mean probability puts first."""
    matrices: dict[str, np.ndarray] = {}
    for part in parts:
        if part.samples.num_rows == 0:
            continue
        intended = part.samples["grade"].to_numpy().astype(int)
        seen = probabilities(part.samples).mean(axis=1).argmax(axis=1)
        for (kind,), rows in groups(part.samples, "kind").items():
            matrix = matrices.setdefault(kind, np.zeros((NUM_GRADES, NUM_GRADES), np.int64))
            np.add.at(matrix, (intended[rows], seen[rows]), 1)
    return dict(sorted(matrices.items(), key=lambda item: (item[0] != "plain", item[0])))


def nearest(parts: list[Part], num_pairs: int = 8) -> list[dict[str, Any]]:
    """The synthetic images closest to a photograph the generator saw, closest first; [] if never measured."""
    found = []
    for part in parts:
        table = part.samples.filter(part.samples["nearest_distance"].is_valid()).sort_by("nearest_distance")
        columns = ["sample_id", "grade", "score", "nearest_image_id", "nearest_distance", "threshold", "memorised"]
        found += [row | {"part": part.replicate} for row in table.select(columns).slice(0, num_pairs).to_pylist()]
    return sorted(found, key=lambda row: row["nearest_distance"])[:num_pairs]
