"""A run with photographs, members and samples written by hand: what a sweep needs, without Ray and in seconds."""

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa

from raydr import images, lineage, metrics, recipes, schema, selection, shards
from raydr.cluster import ensemble, finetune
from raydr.fundus import phantom
from raydr.fundus.phash import phash
from raydr.grading import backbones
from raydr.grading.ensemble import Meta, hash_ids, save_member
from raydr.identity import sha256
from raydr.storage import Run

COUNTS = {"train": (24, 8, 16, 6, 8), "validation": (4,) * 5, "test": (8,) * 5, "fresh": (0, 16, 0, 16, 0)}
COUNTS["external"] = (3,) * 5
COUNTS["prior"] = (0, 3, 0, 2, 0)
DATASETS = {"external": "IDRID", "prior": "EyePACS"}
PX = 32


def changed(recipe, **stages):
    """`recipe` with fields of its stages replaced."""
    parts = {name: dataclasses.replace(getattr(recipe, name), **fields) for name, fields in stages.items()}
    return dataclasses.replace(recipe, **parts)


def small_recipe(**sweep):
    """The debug recipe with sweep settings; no map."""
    options = {"arms": ("oversampling", "naive", "band"), "num_seeds": 1, "map_bands": (), "map_ratios": ()} | sweep
    return changed(recipes.named("debug"), sweep=options)


def photograph(name, split, grade, index, dataset="DDR"):
    pixels, _ = phantom.render(17 + len(split), index, grade, PX)
    data = images.encode(pixels)
    row = dict.fromkeys(schema.REAL.names)
    row |= {"image_id": f"{dataset}/{name}", "dataset": dataset, "split": split, "grade": grade, "gradable": True}
    row |= {
        "image": data,
        "width": PX,
        "height": PX,
        "sha256": sha256(data),
        "phash": phash(pixels),
        "stratum": "phantom",
    }
    return row


def make_run(out, recipe, samples_per_grade=12, grades=(1, 3)):
    """Write OUT's tables for `recipe`; returns the run."""
    run = Run(str(out))
    run.replace_json("recipe.json", {"recipe": dataclasses.asdict(recipe), "versions": {}, "revision": None})
    rows = []
    for split, counts in COUNTS.items():
        dataset = DATASETS.get(split, "DDR")
        for grade, count in enumerate(counts):
            rows += [photograph(f"{split}-{grade}-{k}", split, grade, 100 * grade + k, dataset) for k in range(count)]
    key = "real/000000.parquet"
    shards.commit(run, key, pa.Table.from_pylist(rows, schema.REAL), schema.REAL, "real")
    shards.complete(run, "real", [key])
    add_members(run, recipe)
    add_samples(run, recipe, samples_per_grade)
    return run


def add_members(run, recipe):
    """Untrained members, stored as `raydr ensemble` stores them."""
    real = shards.read(run, "real", schema.REAL, ensemble.COLUMNS)
    seen = real["image_id"].take(selection.part_of(real, "train", recipe.fold)).to_pylist()
    for number, member in enumerate(recipe.ensemble.members):
        name = ensemble.member_name(recipe, number)
        model = backbones.build(member.grader, seed=number).eval()
        meta = Meta(name, member.grader, member.seed, inner_fold=member.inner_fold, trained_on=hash_ids(seen))
        with tempfile.TemporaryDirectory() as folder:
            save_member(Path(folder), model, meta)
            run.upload(Path(folder), f"graders/{ensemble.identity(recipe, run)}/{name}")


def add_samples(run, recipe, count):
    """Samples of every generator that the recipe plans and that has none: phantoms, with scores spread over [0, 1]."""
    for generator in finetune.planned(recipe, run):
        for grade in generator.grades:
            key = lineage.shard_key(generator.generator_id, grade, 0)
            rows = [_sample(recipe, generator, grade, index, count) for index in range(count)]
            table = pa.Table.from_pylist(rows, schema.SYNTHETIC)
            shards.commit(run, key, table, schema.SYNTHETIC, "synthetic", {"threshold": 0.0, "seconds": 1.0})


def _sample(recipe, generator, grade, index, count):
    made = sum(map(ord, generator.kind)) % 97
    data = images.encode(phantom.render(500 + made, 100 * grade + index, grade, PX)[0])
    score = (index + 0.5) / count
    rest = (1 - score) / 4
    said = [score if g == grade else rest for g in range(5)]
    row = dict.fromkeys(schema.SYNTHETIC.names)
    return row | {
        "sample_id": lineage.sample_id(generator.generator_id, grade, index), "generator_id": generator.generator_id,
        "kind": generator.kind, "grade": grade, "index": index, "seed": index, "prompt": "p",
        "sampler": {"name": "dpm++", "steps": 2, "guidance": 2.0, "batch": 4}, "image": data, "sha256": sha256(data),
        "blank": False, "valid_fundus": True, "nearest_image_id": "DDR/train-0-0", "nearest_distance": 1.0,
        "ensemble_id": "e",
        "probabilities": [said] * 3, "score": score, "synthetic": True,
    }  # fmt: skip


def results(run):
    """Rows of trials/results, sorted."""
    rows = shards.read(run, "trials/results", schema.TRIALS).to_pylist()
    return sorted(rows, key=lambda row: (row["arm"], row["purpose"], row["seed"], row["trial_id"]))


def recomputed(run, row, split="test"):
    """Balanced accuracy of a trial from its stored predictions."""
    table = shards.read(run, "trials/predictions", schema.PREDICTIONS).to_pylist()
    mine = [item for item in table if item["trial_id"] == row["trial_id"] and item["split"] == split]
    grades, predictions = (np.array([item[name] for item in mine]) for name in ("grade", "prediction"))
    return metrics.balanced_accuracy(metrics.confusion(grades, predictions))
