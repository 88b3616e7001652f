"""The latent cache: what is encoded, once, under which identity; in this process, as an actor of Ray Data does it."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pytest
from diffusion import thin

from raydr import prompts, recipes, schema, shards
from raydr.cluster import latents
from raydr.diffusion.latents import encode
from raydr.diffusion.model import load_base
from raydr.diffusion.state import Alone
from raydr.errors import DamagedData, MissingInput
from raydr.fundus.phantom import render
from raydr.identity import sha256
from raydr.images import decode
from raydr.images import encode as to_bytes
from raydr.storage import Run

PX = 32
SPLITS = ("train", "train", "validation", "test", "prior", "fresh")


def shard(number, splits, seed=0):
    """Rows of `real`: one phantom a split named; the last of them ungraded if it is a prior one."""
    rows = []
    for k, split in enumerate(splits):
        image = to_bytes(render(seed, 10 * number + k, k % 5, PX)[0])
        row = dict.fromkeys(schema.REAL.names)
        row |= {
            "image_id": f"DDR/{number}-{k}", "dataset": "EyePACS" if split == "prior" else "DDR", "split": split,
            "grade": None if split == "prior" else k % 5, "gradable": True, "image": image, "width": PX, "height": PX,
            "sha256": sha256(image), "phash": "0" * 16,
        }  # fmt: skip
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=schema.REAL)


@pytest.fixture
def target(tmp_path):
    run = Run(str(tmp_path / "out"))
    for number in range(3):
        splits = SPLITS if number < 2 else ("test", "fresh")
        shards.commit(run, f"real/{number:06d}.parquet", shard(number, splits), schema.REAL, "r")
    return run


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    debug, base = recipes.named("debug"), thin.build(tmp_path_factory.mktemp("base"))
    return dataclasses.replace(debug, finetune=dataclasses.replace(debug.finetune, base=str(base), px=PX))


def test_each_shard_of_photographs_that_are_learnt_from_gives_one_shard(target, recipe):
    plans = latents.plans(recipe, target)
    images, words = plans[:-1], plans[-1]
    assert [plan["real"] for plan in images] == ["real/000000.parquet", "real/000001.parquet"]  # the third is for tests
    assert all(plan["rows"] == [0, 1, 2, 4] for plan in images)  # neither test nor fresh
    assert words["prompts"] == prompts.every_prompt(["DDR", "EyePACS"])


def test_the_cache_holds_what_the_vae_says(target, recipe):
    latents.run_here(recipe, target, 1)
    base = latents.base_of(recipe)
    parts = latents.parts(recipe, target, Alone(), base)
    assert {part: len(photographs.image_ids) for part, photographs in parts.items()} == {
        "train": 4, "prior": 6, "validation": 2,
    }  # fmt: skip
    train, prior = parts["train"], parts["prior"]
    assert train.image_ids == ("DDR/0-0", "DDR/0-1", "DDR/1-0", "DDR/1-1")
    assert prior.image_ids[:4] == train.image_ids
    assert prior.grades.tolist() == [0, 1, 0, 1, -1, -1]
    real = shards.read(target, "real", schema.REAL).to_pylist()
    pixels = {row["image_id"]: decode(row["image"]) for row in real}
    images = np.stack([pixels[name] for name in train.image_ids])
    expected = encode(load_base(recipe.finetune.base), lambda part: images[part], len(images))
    assert (train.latents.mean - expected.mean).abs().max() < 1e-4
    assert (train.latents.std - expected.std).abs().max() < 1e-4
    known = latents.embeddings(recipe, target, base)
    words = load_base(recipe.finetune.base).embed(["A color fundus image from DDR dataset in mild DR stage."])[0]
    assert (known["A color fundus image from DDR dataset in mild DR stage."] - words).abs().max() < 1e-5


def test_what_is_there_is_not_made_again(target, recipe, monkeypatch):
    latents.run_here(recipe, target, 1)
    before = {key: target.read(key) for key, _ in target.list() if key.startswith(("latents", "embeddings"))}
    assert len(before) == 3
    monkeypatch.setattr(latents, "Encode", None)  # an encoder would fail
    latents.run_here(recipe, target, 1)
    assert {key: target.read(key) for key in before} == before


def test_a_grown_set_encodes_its_new_shards_alone(target, recipe):
    latents.run_here(recipe, target, 1)
    shards.commit(target, "real/000007.parquet", shard(7, ("train",)), schema.REAL, "r")
    done = shards.commits(target, "latents")
    (plan,) = [plan for plan in latents.plans(recipe, target)[:-1] if plan["key"] not in done]
    assert plan["real"] == "real/000007.parquet"


@pytest.mark.parametrize("change", ["px", "precision", "base", "image"])
def test_another_identity_never_meets_old_latents(target, recipe, tmp_path, change):
    before = [plan["key"] for plan in latents.plans(recipe, target)[:-1]]
    other = {"px": {"px": 16}, "precision": {"precision": "bf16"}, "base": {"base": "phantom"}}.get(change)
    if other:
        recipe = dataclasses.replace(recipe, finetune=dataclasses.replace(recipe.finetune, **other))
        after = latents.plans(recipe, target)[:-1]
        assert not set(before) & {plan["key"] for plan in after}
        return
    elsewhere = Run(str(tmp_path / "other"))
    for number in range(2):  # the same names, other pixels in the second shard
        table = shard(number, SPLITS, seed=number)
        shards.commit(elsewhere, f"real/{number:06d}.parquet", table, schema.REAL, "r")
    after = [plan["key"] for plan in latents.plans(recipe, elsewhere)[:-1]]
    assert before[0] == after[0]
    assert before[1] != after[1]


def test_a_photograph_without_latents_is_said(target, recipe):
    latents.run_here(recipe, target, 1)
    shards.commit(target, "real/000007.parquet", shard(7, ("train",)), schema.REAL, "r")
    with pytest.raises(MissingInput, match="lacks the latents of 1 photographs"):
        latents.parts(recipe, target, Alone(), latents.base_of(recipe))


def test_a_damaged_shard_of_photographs_is_not_encoded(target, recipe):
    plan = latents.plans(recipe, target)[0]
    path = target.path(plan["real"])
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    worker = latents.Encode(target.url, recipe, False, 1)
    with pytest.raises(DamagedData, match="is damaged: run `raydr repair`"):
        worker.make(plan)
    # Through Ray Data the sentence travels as a row: an exception would end in a traceback.
    answer = worker({"plan": np.array([json.dumps(plan)], dtype=object)})
    assert answer["rows"] == [0]
    assert "run `raydr repair`" in answer["refused"][0]
    assert not shards.commits(target, "latents")


def test_every_prompt_that_training_draws_is_among_the_embedded_ones():
    known, rng = set(prompts.every_prompt(["DDR", "EyePACS"])), np.random.default_rng(0)
    for dataset in ("DDR", "EyePACS"):
        for grade in (None, 0, 1, 2, 3, 4):
            assert {prompts.prior_prompt(dataset, grade, rng) for _ in range(60)} <= known
            assert grade is None or prompts.instance_prompt(dataset, grade) in known
    assert "" in known
    assert len(known) == 1 + 3 * 6
