"""A small run with plausible numbers, written through shards.commit: what the report's tests read.

The numbers are drawn, not measured: an arm has a skill per grade, photographs have a difficulty that
all arms share, seeds and replicates jitter the skill.
"""

import base64
import dataclasses
import json

import numpy as np
import pyarrow as pa

from raydr import config, images, schema, shards
from raydr.storage import Run

# Logit advantage of the true grade, per grade 0-4.
SKILLS = {
    "real_only": (3.4, -0.6, 2.2, -0.4, 1.6),
    "oversampling": (3.0, 0.5, 1.8, 0.6, 1.9),
    "naive": (2.9, 0.4, 1.5, 0.5, 1.7),
    "band": (2.9, 1.3, 1.8, 1.5, 1.9),
    "ecc": (2.9, 1.2, 1.8, 1.4, 2.0),
    "ceiling": (3.1, 2.0, 2.2, 2.4, 2.4),
}
BANDS = ((0.5, 0.8), (0.5, 0.9), (0.5, 1.0), (0.6, 0.9), (0.7, 0.9), (0.7, 1.0))
RATIOS = (0.25, 0.5, 1.0, 2.0)
NEIGHBOURS = -0.8 * np.abs(np.arange(5)[:, None] - np.arange(5)[None, :])


# As `raydr audit` writes it: one pair of photographs in two splits, one with two grades.
PAIR = {"kind": "perceptual", "mirrored": False, "bits": 2, "correlation": 0.97, "datasets": ["DDR", "DDR"]}
AUDIT = {
    "num_images": 328,
    "counts": {"exact duplicates": 0, "perceptual duplicates": 2, "across splits": 1, "conflicting labels": 1},
    "leaks": ["DDR/test-0-0000 (test) and DDR/train-0-0003 (train) show the same picture"],
    "warnings": ["DDR: border alone predicts grade with balanced accuracy 0.41 (chance 0.20)"],
    "duplicates": [
        PAIR | {"a": "DDR/train-1-0000", "b": "DDR/train-2-0001", "splits": ["train", "train"], "grades": [1, 2]},
        PAIR | {"a": "DDR/train-0-0002", "b": "DDR/train-0-0003", "splits": ["prior", "test"], "grades": [0, None]},
    ],
}
# What a driver of synthesis has spent: 120 images' worth of 400 seconds, at prices somebody has checked.
SPENT = {
    "seconds": 200.0, "node_seconds": 400.0, "gpu_seconds": 200.0, "priced_seconds": 400.0, "cost": 0.3,
    "currency": "EUR", "checked": True, "images": 120,
}  # fmt: skip


def recipe(num_replicates: int = 1, num_seeds: int = 3, **report) -> dict:
    """The resolved recipe, as a dict, that goes with `write_run`."""
    member = config.Member(grader=config.Grader())
    return dataclasses.asdict(
        config.Recipe(
            name="fake",
            num_replicates=num_replicates,
            ensemble=config.Ensemble(members=(member,) * 3),
            sweep=config.Sweep(num_seeds=num_seeds, map_bands=BANDS, map_ratios=RATIOS),
            report=config.Report(**({"bootstrap_draws": 2000, "gallery": 24} | report)),
        )
    )


def write_run(
    path,
    num_replicates: int = 1,
    num_seeds: int = 3,
    num_test: int = 40,
    num_samples: int = 64,
    with_synthetic: bool = True,
    with_trials: bool = True,
    painter=None,
) -> Run:
    """A finished run below `path`; `painter(grade, rng)` makes its photographs (uint8, 64 x 64 x 3)."""
    run = Run(str(path))
    values = recipe(num_replicates, num_seeds)
    run.replace_json(
        "recipe.json",
        {
            "recipe": values,
            "versions": {"raydr": "0.1.0", "torch": "2.14.0", "ray": "2.60.0", "numpy": "2.4.1"},
            "revision": "0123456789abcdef",
            "fingerprints": {"ingest": "aaaa", "sweep": "bbbb"},
        },
    )
    names = ("ingest", "ensemble", "finetune", "synthesize", "sweep")
    seconds = (31.2, 44.0, 138.5, 92.1, 141.7)
    stages = {name: {"seconds": s, "peak_bytes": int(2.5e9)} for name, s in zip(names, seconds, strict=True)}
    for replicate in range(num_replicates):
        child = run if num_replicates == 1 else run.child(f"replicate-{replicate}")
        child.replace_json("logs/stages.json", stages)
        child.replace_json("report/audit.json", AUDIT)
        child.replace_json("logs/spend/synthesize-a.json", SPENT)
        _write_part(child, replicate, num_seeds, num_test, num_samples, with_synthetic, with_trials, painter or paint)
    return run


def paint(grade: int, rng: np.random.Generator) -> np.ndarray:
    """A reddish disc with more dots for higher grades: enough to see which picture is which."""
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    light = np.clip(1.1 - 0.5 * np.hypot(x - rng.normal(0, 0.2), y), 0, 1)
    image = light[..., None] * np.array([190, 90, 40]) + rng.normal(0, 4, (64, 64, 3))
    for _ in range(grade * 4):
        dx, dy = rng.uniform(-0.6, 0.6, 2)
        image[np.hypot(x - dx, y - dy) < 0.05] = (90, 20, 15)
    image[np.hypot(x, y) > 0.97] = 0
    return np.clip(image, 0, 255).astype(np.uint8)


def _write_part(run, replicate, num_seeds, num_test, num_samples, with_synthetic, with_trials, painter):
    rng = np.random.default_rng(100 + replicate)
    counts = {"train": (30, 6, 20, 4, 8), "validation": (12,) * 5, "test": (num_test,) * 5}
    rows = []
    for split, per_grade in counts.items():
        for grade, count in enumerate(per_grade):
            for index in range(count):
                data = images.encode(painter(grade, rng)) if split == "train" else b"x"
                name = f"DDR/{split}-{grade}-{index:04d}"
                rows.append(_real_row(name, split, grade, data, replicate))
    shards.commit(run, "real/000000.parquet", pa.Table.from_pylist(rows, schema.REAL), schema.REAL, "real")
    if with_synthetic:
        for kind in ("plain", "ecc"):
            for grade in (1, 3):
                _write_samples(run, kind, grade, num_samples, rng, painter, replicate)
        _write_members(run, replicate)
    if with_trials:
        _write_trials(run, rows, replicate, num_seeds, rng)


def _real_row(name, split, grade, data, seed):
    row = dict.fromkeys(schema.REAL.names)
    row |= {"image_id": name, "dataset": "DDR", "split": split, "grade": grade, "gradable": True, "image": data}
    return row | {"width": 64, "height": 64, "sha256": f"{seed}/{name}", "phash": "0" * 16}


def _write_samples(run, kind, grade, count, rng, painter, replicate):
    generator = f"{kind}-g{grade}-{replicate}"
    strength = (1.2 if kind == "ecc" else 0.6) + (0.3 if grade == 3 else 0)
    rows = []
    for index in range(count):
        logits = rng.normal(0, 1.2, 5) + NEIGHBOURS[grade] + strength * np.eye(5)[grade] * rng.gamma(2, 1)
        members = [_softmax(logits + rng.normal(0, 0.4, 5)) for _ in range(3)]
        score = float(np.mean([member[grade] for member in members]))
        shown = int(np.argmax(np.mean(members, axis=0)))
        row = dict.fromkeys(schema.SYNTHETIC.names)
        row |= {
            "sample_id": f"{generator}/g{grade}/{index}",
            "generator_id": generator,
            "kind": kind,
            "grade": grade,
            "index": index,
            "seed": int(rng.integers(2**62)),
            "prompt": "A color fundus image from DDR dataset in mild DR stage.",
            "sampler": {"name": "dpm++", "steps": 10, "guidance": 2.0, "batch": 16},
            "image": images.encode(painter(shown, rng)),
            "sha256": "0",
            "blank": index == 5,
            "valid_fundus": True,
            "nearest_image_id": f"DDR/train-{grade}-{index % 4:04d}",
            "nearest_distance": float(rng.gamma(4, 2)),
            "ensemble_id": f"e-{generator.rsplit('-', 1)[1]}",
            "probabilities": [member.tolist() for member in members],
            "score": score,
            "synthetic": True,
        }
        rows.append(row)
    table = pa.Table.from_pylist(rows, schema.SYNTHETIC)
    extra = {"accepted": 0, "seconds": 30.0, "threshold": 2.0}
    shards.commit(run, f"synthetic/{generator}/g{grade}-000000.parquet", table, schema.SYNTHETIC, "synthetic", extra)
    curve = []
    for step in range(1, 81):
        event = {"event": "step", "step": step, "instance": 0.1 + 0.2 * float(np.exp(-step / 30) + rng.normal(0, 0.02))}
        event["prior"] = 0.12 + 0.05 * float(np.exp(-step / 30))
        if kind == "ecc" and step > 40:
            event["ecc"] = 0.11 + 0.05 * float(np.exp(-step / 60))
        if step % 20 == 0:
            event["validation"] = 0.14 + 0.2 * float(np.exp(-step / 25))
        curve.append(event)
        if kind == "ecc" and step >= 40 and step % 10 == 0:
            curve.append({"event": "ecc", "step": step, "ecc_acceptance": 0.2 + step / 300})
    run.replace(f"logs/finetune/{generator}.json", json.dumps(curve).encode())


def _write_members(run, replicate):
    for number, role in enumerate(("score", "score", "score", "audit")):
        name = f"{number:02d}-resnet10t-f{number}"
        record = {"name": name, "role": role, "inner_fold": number, "temperature": 1.1 + number / 10}
        record |= {"validation": {"balanced_accuracy": 0.8 + number / 100}, "grader": {"backbone": "resnet10t"}}
        record |= {"trained_on": base64.b64encode(bytes(8 * 55)).decode()}
        run.replace_json(f"graders/e-{replicate}/{name}/grader.json", record)


def _write_trials(run, rows, replicate, num_seeds, rng):
    sets = {}
    for split in ("validation", "test"):
        of_split = [row for row in rows if row["split"] == split]
        grades = np.array([row["grade"] for row in of_split])
        difficulty = rng.normal(0, 1.3, (len(grades), 5))
        sets[split] = ([row["image_id"] for row in of_split], grades, difficulty)
    drift = {arm: rng.normal(0, 0.15, 5) for arm in SKILLS}
    for seed in range(num_seeds):
        for arm, skill in SKILLS.items():
            values = {"arm": arm, "purpose": "arm", "seed": seed}
            if arm in ("naive", "band", "ecc"):
                values |= {"ratio": 1.0}
            if arm in ("band", "ecc"):
                values |= {"band_low": 0.7, "band_high": 0.9}
            _write_trial(run, values, np.array(skill) + drift[arm], sets, ("validation", "test"), replicate, rng)
    for low, high in BANDS:
        for ratio in RATIOS:
            skill = np.array(SKILLS["band"]) + 0.5 * (low - 0.6) - 0.6 * (ratio - 1) ** 2
            values = {"arm": "band", "purpose": "map", "seed": 0, "band_low": low, "band_high": high, "ratio": ratio}
            if ratio == max(RATIOS):  # more than there is
                values |= {"num_synthetic": [0, 24, 0, 6, 0], "shortage": [0, 0, 0, 20, 0]}
            _write_trial(run, values, skill, sets, ("validation",), replicate, rng)


def _write_trial(run, values, skill, sets, splits, replicate, rng):
    band = f"{values.get('band_low')}-{values.get('band_high')}-{values.get('ratio')}".replace(".", "_")
    trial_id = f"{values['arm']}-{values['purpose']}-{band}-{values['seed']}-{replicate}"
    tables, balanced = [], {}
    for split in splits:
        names, grades, difficulty = sets[split]
        logits = difficulty + NEIGHBOURS[grades] + rng.normal(0, 0.5, difficulty.shape)
        logits[np.arange(len(grades)), grades] += (skill + rng.normal(0, 0.1, 5))[grades]
        probabilities = np.apply_along_axis(_softmax, 1, logits).astype(np.float32)
        predictions = probabilities.argmax(axis=1)
        balanced[split] = np.mean([(predictions == g)[grades == g].mean() for g in range(5)])
        tables.append(
            pa.table(
                {
                    "trial_id": [trial_id] * len(names),
                    "split": [split] * len(names),
                    "image_id": names,
                    "grade": grades,
                    "prediction": predictions,
                    "probabilities": probabilities.tolist(),
                }
            ).cast(schema.PREDICTIONS)
        )
    row = dict.fromkeys(schema.TRIALS.names)
    row |= {"trial_id": trial_id, "backbone": "resnet10t", "loss": "ce", "sampler": "balanced", "replicate": replicate}
    row |= {"steps": 200, "num_real": 68, "num_synthetic": [0, 24, 0, 26, 0], "shortage": [0] * 5, "seconds": 14.0}
    row |= {"validation_balanced_accuracy": balanced["validation"], "balanced_accuracy": balanced.get("test")}
    row |= values
    result = pa.Table.from_pylist([row], schema.TRIALS)
    shards.commit(run, f"trials/results/{trial_id}.parquet", result, schema.TRIALS, "sweep")
    shards.commit(run, f"trials/predictions/{trial_id}.parquet", pa.concat_tables(tables), schema.PREDICTIONS, "sweep")


def _softmax(logits):
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()
