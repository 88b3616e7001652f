"""Every number that the report shows, as one JSON value: `results.json` (DESIGN.md section 3).

All of it is recomputed from the stored predictions and scores; nothing is taken over from what a stage
printed. The page is rendered from this value and pictures alone.
"""

import base64
import dataclasses
import math
from typing import Any

import numpy as np

from raydr import shards
from raydr.grades import DDR_TEST_COUNTS, NUM_GRADES
from raydr.report import answer, arms, contrasts, extras, heatmap, judges, samples
from raydr.report.data import Part, load, optional_json
from raydr.storage import Run

FORMAT = 1
STAGES = ("ingest", "ensemble", "finetune", "synthesize", "sweep", "report")


def results(run: Run, recipe: dict[str, Any]) -> dict[str, Any]:
    """`results.json` of `run`; `recipe` is the resolved recipe as a dict (`recipe.json`'s "recipe").

    JSON types only; nan and numbers that do not exist are None. Raises DamagedData where trials
    cannot be compared, and what reading a run raises.
    """
    return from_parts(run, recipe, load(run, recipe["num_replicates"]))


def from_parts(run: Run, recipe: dict[str, Any], parts: list[Part]) -> dict[str, Any]:
    """`results` of what `data.load` has read already."""
    options = recipe["report"]
    saved = optional_json(run, "recipe.json") or {}
    grouped = arms.group(parts)
    by_trial = {
        trial.row["trial_id"]: arms.trial_numbers(parts[index], trial)
        for arm in grouped
        for index, trial in arm.of_test()
    }
    comparer = contrasts.Comparer(parts, grouped, options["bootstrap_draws"], options["confidence"])
    table = [arms.summarise(arm, parts, by_trial) for arm in grouped]
    for row in table:
        level = comparer.level(row["name"])
        row["interval"] = [level.low, level.high] if level else None
    found: dict[str, Any] = {
        "format": FORMAT,
        "name": recipe["name"],
        "phantom": recipe["ingest"]["source"] == "phantom",
        "confidence": options["confidence"],
        "bootstrap_draws": options["bootstrap_draws"],
        "band": list(recipe["sweep"]["band"]),
        "ratio": recipe["sweep"]["ratio"],
        "partial": _partial(recipe, parts),
        "num_replicates": len(parts),
        "varied": contrasts.varied(recipe),
        "shared_test_images": comparer.shared_images,
        "num_test": _per_grade(parts),
        "ddr_priors": [count / sum(DDR_TEST_COUNTS) for count in DDR_TEST_COUNTS],
        "photographs": _photographs(parts),
        "arms": {
            arm.name: {trial.row["trial_id"]: by_trial[trial.row["trial_id"]] for _, trial in arm.of_test()}
            for arm in grouped
        },
        "table": table,
        "contrasts": contrasts.all_contrasts(comparer, lambda arm: _as_in_recipe(arm, recipe)),
        "gap_closed": _gaps(comparer, grouped),
        "maps": heatmap.maps(parts),
        "acceptance": samples.acceptance(parts, tuple(recipe["sweep"]["band"])),
        "rescored": samples.rescored(parts, tuple(recipe["sweep"]["band"])),
        "audited": judges.audited(parts),
        "scores": {"stops": samples.STOPS, "groups": samples.score_counts(parts)},
        "verdicts": samples.verdict_matrices(parts),
        "nearest": samples.nearest(parts),
        "strata": arms.strata(grouped, parts),
        "probes": arms.probes(parts),
        "curves": _curves(parts),
        "members": _members(parts),
        "stages": _stages(run, parts),
        "audit": arms.discrepancies(parts, by_trial) + _superseded(parts) + _not_there(parts) + _quarantine(parts),
        "data_audit": extras.data_audit(parts),
        "external": extras.external(run),
        "cost": extras.costs(run, parts, STAGES),
        "recipe": recipe,
        "versions": saved.get("versions", {}),
        "revision": saved.get("revision"),
        "fingerprints": saved.get("fingerprints", {}),
    }
    found["quality"], found["quality_about"] = extras.quality(run, parts)
    judges.add_to(found["acceptance"], parts, tuple(recipe["sweep"]["band"]))
    _add_seconds(found["acceptance"], parts)
    extras.add_cost(found["acceptance"], found["cost"].get("synthesize"))
    found["answer"] = answer.answer(found)
    return plain(found)


def plain(value: Any) -> Any:
    """`value` in JSON types: arrays become lists, numpy numbers Python's, nan and infinities None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _as_in_recipe(arm: arms.Arm, recipe: dict[str, Any]) -> bool:
    """Whether a variant of an arm has the recipe's own ratio, band and grader: the confirmatory one."""
    sweep = recipe["sweep"]
    grader = sweep["grader"]
    wanted = (*(grader[name] for name in arms.CONTEXT), sweep["ratio"], *sweep["band"], grader["soft_labels"])
    found = (*arm.context, *arm.axes)
    return all(
        a is None or (abs(a - b) < 1e-6 if isinstance(a, float) else a == b) for a, b in zip(found, wanted, strict=True)
    )


def _partial(recipe: dict[str, Any], parts: list[Part]) -> bool:
    """Whether some of the trials asked for are there and others are not."""
    if not any(part.trials for part in parts):
        return False
    arms_asked, seeds = set(recipe["sweep"]["arms"]), recipe["sweep"]["num_seeds"]
    for part in parts:
        reported = [trial.row for trial in part.trials if trial.row["purpose"] in ("arm", "probe")]
        left_out = set((optional_json(part.run, "trials/plan.json") or {}).get("left_out", {}))
        asked = part.num_planned if part.num_planned is not None else len(arms_asked) * seeds
        have = len(part.trials) if part.num_planned is not None else len(reported)
        if have < asked or not arms_asked - left_out <= {row["arm"] for row in reported}:
            return True
    return len(parts) < recipe["num_replicates"]


def _superseded(parts: list[Part]) -> list[str]:
    count = sum(part.num_superseded for part in parts)
    if count == 0:
        return []
    return [f"Trials of earlier plans, stored and not shown: {count} (earlier looks at these photographs)."]


def _not_there(parts: list[Part]) -> list[str]:
    """One sentence for each arm that could not be run, and for each trial that failed, with its reason."""
    sentences = []
    for part in parts:
        where = f" (replicate {part.replicate})" if len(parts) > 1 else ""
        left_out = (optional_json(part.run, "trials/plan.json") or {}).get("left_out", {})
        sentences += [f"Arm {sentence}{where}." for sentence in left_out.values()]
        for failed in (optional_json(part.run, "trials/failed.json") or {}).values():
            sentences.append(f"A trial of {failed['arm']}, seed {failed['seed']}, failed{where}: {failed['reason']}.")
    return sentences


def _per_grade(parts: list[Part]) -> list[int] | None:
    tested = [part.sets["test"].grades for part in parts if "test" in part.sets]
    return np.bincount(tested[0], minlength=NUM_GRADES).tolist() if tested else None


def _photographs(parts: list[Part]) -> list[dict[str, Any]]:
    """Rows of `real` per data set and split: counts per grade of one replicate, and without a grade."""
    if not parts:
        return []
    rows: dict[tuple[str, str], list[int]] = {}
    table = parts[0].photographs
    for dataset, split, grade in zip(*(table[name].to_pylist() for name in ("dataset", "split", "grade")), strict=True):
        counts = rows.setdefault((dataset, split), [0] * (NUM_GRADES + 1))
        counts[NUM_GRADES if grade is None else grade] += 1
    splits = ["train", "validation", "test", "prior", "external", "fresh"]
    ranked = sorted(rows, key=lambda key: (splits.index(key[1]) if key[1] in splits else len(splits), key))
    return [
        {
            "dataset": dataset,
            "split": split,
            "counts": rows[dataset, split][:NUM_GRADES],
            "ungraded": rows[dataset, split][-1],
        }
        for dataset, split in ranked
    ]


def _gaps(comparer: contrasts.Comparer, grouped: list[arms.Arm]) -> list[dict[str, Any]]:
    found = []
    for ceiling in (arm for arm in grouped if arm.arm == "ceiling"):
        for baseline in (arm for arm in grouped if arm.arm == arms.BASELINE and arm.context == ceiling.context):
            for arm in grouped:
                if arm.context == ceiling.context and arm.arm not in ("ceiling", arms.BASELINE):
                    gap = comparer.gap_closed(arm.name, ceiling.name, baseline.name)
                    found += [gap] if gap else []
    return found


def _curves(parts: list[Part]) -> dict[str, list[dict[str, Any]]]:
    """{generator_id: its training log}, as fine-tuning wrote it."""
    curves = {}
    for part in parts:
        for key, _ in part.run.list("logs/finetune"):
            if key.endswith(".json"):
                curves[key.rsplit("/", 1)[1].removesuffix(".json")] = part.run.read_json(key)
    return curves


def _members(parts: list[Part]) -> list[dict[str, Any]]:
    """The ensemble's members as their records say: in the order in which samples hold their probabilities."""
    found = []
    for part in parts:
        for key, _ in part.run.list("graders"):
            if key.endswith("/grader.json"):
                record = part.run.read_json(key)
                kept = {name: record.get(name) for name in ("name", "role", "inner_fold", "temperature", "validation")}
                kept |= {"backbone": record["grader"]["backbone"], "replicate": part.replicate}
                found.append(kept | {"ensemble_id": key.split("/")[1], "num_photographs": _num_ids(record)})
    return found


def _num_ids(record: dict[str, Any]) -> int:
    """Photographs a member was trained on: 8 bytes each, in base64."""
    return len(base64.b64decode(record.get("trained_on", ""))) // 8


def _stages(run: Run, parts: list[Part]) -> dict[str, dict[str, float]]:
    """{stage: seconds, peak_bytes}; of several replicates the sum and the maximum."""
    runs = [run, *(part.run for part in parts if part.run != run)]
    stages: dict[str, dict[str, float]] = {}
    for each in runs:
        for name, stage in (optional_json(each, "logs/stages.json") or {}).items():
            total = stages.setdefault(name, {"seconds": 0.0, "peak_bytes": 0})
            total["seconds"] += stage.get("seconds") or 0.0
            total["peak_bytes"] = max(total["peak_bytes"], stage.get("peak_bytes") or 0)
    return {
        name: stages[name] for name in sorted(stages, key=lambda name: STAGES.index(name) if name in STAGES else 99)
    }


def _quarantine(parts: list[Part]) -> list[str]:
    """One sentence a table and reason for which rows or shards were set aside."""
    counts: dict[tuple[str, str], int] = {}
    for part in parts:
        for table in ("real", "synthetic", "trials/results"):
            for row in shards.quarantined(part.run, table):
                counts[table, row["reason"]] = counts.get((table, row["reason"]), 0) + 1
    return [f"{count} of {table} in quarantine: {reason}." for (table, reason), count in sorted(counts.items())]


def _add_seconds(acceptance: dict[str, dict[str, Any]], parts: list[Part]) -> None:
    """Seconds of generation and scoring per accepted image, from the shards' commit records."""
    for part in parts:
        for key, record in shards.commits(part.run, "synthetic").items():
            _, generator, name = key.split("/")[:3]
            row = acceptance.get(generator, {}).get(name[1:].split("-")[0])
            if row is not None and "seconds" in record.extra:
                row["seconds"] = row.get("seconds", 0.0) + record.extra["seconds"]
    for rows in acceptance.values():
        for row in rows.values():
            if row["accepted"] and "seconds" in row:
                row["seconds_per_accepted"] = row["seconds"] / row["accepted"]
