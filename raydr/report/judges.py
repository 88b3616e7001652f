"""What scores are worth: other judges' verdicts by bin, tempered scores, another band where the own is nearly empty."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raydr import schema, shards
from raydr.grades import NUM_GRADES
from raydr.grading.calibration import temper
from raydr.report.data import Part, optional_json
from raydr.report.samples import groups, probabilities, scores, usable

# The score bins of the arms bin_low, bin_mid, bin_paper and bin_top: (low, high, which ends belong to it).
BINS = ((0.0, 0.5, "[)"), (0.5, 0.7, "[)"), (0.7, 0.9, "[]"), (0.9, 1.0, "(]"))
# Below this share of accepted images the page says so, and offers another band.
FEW = 0.02


def audited(parts: list[Part]) -> list[dict[str, Any]]:
    """P(verdict = intended grade | score bin) by the judges of `raydr rescore`: a row an ensemble, kind and grade.

    The bins are those of the run's own score, the verdict is what the other ensemble's mean probability puts first: on
    phantoms an oracle's, elsewhere the audit members'. `held_out` is those judges' own balanced accuracy on photographs
    that they were not trained on, mean over members, None where unknown. Usable images alone, replicates pooled.
    """
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    columns = ["sample_id", "ensemble_id", "probabilities"]
    for part in parts:
        table = shards.read(part.run, "scores", schema.SCORES, columns, required=False)
        at = pc.index_in(table["sample_id"], value_set=part.samples["sample_id"].combine_chunks())
        table = table.append_column("at", at).filter(pc.is_valid(at))
        for (ensemble_id,), mine in groups(table, "ensemble_id").items():
            theirs = table.take(mine)
            judged = part.samples.take(theirs["at"])
            verdicts = probabilities(theirs).mean(axis=1).argmax(axis=1)
            for (kind, grade), rows in groups(judged, "kind", "grade").items():
                good = rows[usable(judged)[rows]]
                score, right = scores(judged)[good], verdicts[good] == grade
                key = (ensemble_id, kind, int(grade))
                bins = [{"low": low, "high": high, "num_images": 0, "num_right": 0} for low, high, _ in BINS]
                row = found.setdefault(key, {"bins": bins, "held_out": held_out(part, ensemble_id)})
                for one, (low, high, ends) in zip(row["bins"], BINS, strict=True):
                    inside = (score >= low if ends[0] == "[" else score > low) & (
                        score <= high if ends[1] == "]" else score < high
                    )
                    one["num_images"] += int(inside.sum())
                    one["num_right"] += int(right[inside].sum())
    return [{"ensemble_id": e, "kind": k, "grade": g} | row for (e, k, g), row in sorted(found.items())]


def members(part: Part, ensemble_id: str) -> list[dict[str, Any]]:
    """The records of an ensemble's members, as `raydr rescore` names it: imported, or of the run's own by role."""
    for prefix in (f"imported/{ensemble_id}", f"graders/{ensemble_id}"):
        records = _records(part, prefix)
        if records:
            return records if prefix.startswith("imported") else [r for r in records if r["role"] == "score"]
    name, _, role = ensemble_id.rpartition("-")
    return [record for record in _records(part, f"graders/{name}") if role in ("all", record["role"])] if name else []


def _records(part: Part, prefix: str) -> list[dict[str, Any]]:
    return [part.run.read_json(key) for key, _ in part.run.list(prefix) if key.endswith("/grader.json")]


def held_out(part: Part, ensemble_id: str) -> float | None:
    found = [record.get("validation", {}).get("balanced_accuracy") for record in members(part, ensemble_id)]
    return float(np.mean(found)) if found and None not in found else None


def add_to(acceptance: dict[str, dict[str, Any]], parts: list[Part], band: tuple[float, float]) -> None:
    """Add to rows of `samples.acceptance` the tempered score's mean and share, and where few pass another band.

    tempered_mean and tempered_share: with every member's logits divided by the temperature that was fitted on the fold
    held out from it. quantile_band: the 10th to the 90th percentile of the scores of validation photographs of the
    grade, as the ensemble's stage noted them, with quantile_accepted; for shares under FEW only.
    """
    for part in parts:
        told = ((optional_json(part.run, "logs/stage-ensemble.json") or {}).get("summary") or {}).get("ensemble") or {}
        for (generator, grade), rows in groups(part.samples, "generator_id", "grade").items():
            made, row = part.samples.take(rows), acceptance[generator][str(grade)]
            tempered = tempered_scores(part, made)
            if tempered is not None:
                row["tempered_mean"] = float(tempered.mean())
                row["tempered_share"] = float((usable(made) & _inside(tempered, *band)).mean())
            low, high = (told.get(f"score_{name}_{grade}") for name in ("q10", "q90"))
            if row["share"] < FEW and low is not None and high is not None:
                row["quantile_band"] = [low, high]
                row["quantile_accepted"] = int((usable(made) & _inside(scores(made), low, high)).sum())


def tempered_scores(part: Part, samples: pa.Table) -> np.ndarray | None:
    """float64 (n,): scores of members at their temperatures; None where the members' records do not fit."""
    (ensemble_id, *others) = set(samples["ensemble_id"].to_pylist())
    temperatures = [] if others else [record["temperature"] for record in members(part, str(ensemble_id))]
    said = probabilities(samples).astype(float)
    if not temperatures or said.shape[1] != len(temperatures):
        return None
    grades = samples["grade"].to_numpy().astype(int)
    each = [temper(said[:, m], temperature) for m, temperature in enumerate(temperatures)]
    assert said.shape[2] == NUM_GRADES, said.shape
    return np.mean(each, axis=0)[np.arange(len(grades)), grades]


def _inside(score: np.ndarray, low: float, high: float) -> np.ndarray:
    return (score >= low) & (score <= high)
