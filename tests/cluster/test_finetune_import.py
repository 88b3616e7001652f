"""Generators from elsewhere: taken into a run, recorded as unproven, and sampled from. No Ray."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_run import changed, make_run, small_recipe

from raydr import cli, recipes
from raydr.cluster import finetune, generator, synthesize
from raydr.diffusion import lora
from raydr.diffusion.model import PHANTOM_BASE, load_base
from raydr.errors import MissingInput
from raydr.storage import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run") / "out", small_recipe())


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """A LoRA as diffusers' training script writes it: no metadata, so its alpha is its rank."""
    folder = tmp_path_factory.mktemp("lora")
    unet = load_base("phantom").unet
    torch.manual_seed(3)
    for weight in lora.add(unet, recipes.named("debug").finetune, seed=1):
        weight.data.normal_(std=0.2)
    lora.save(unet, folder)
    save_file(load_file(folder / lora.WEIGHTS), folder / lora.WEIGHTS)
    return folder


def take(run, source, *more, grade=3):
    """Exit code of the command, and the records of all imported generators by id."""
    code = cli.main(["finetune", "import", str(source), "--out", run.url, "--grade", str(grade), *more])
    keys = [key for key, _ in run.list("generators") if key.endswith("/generator.json")]
    return code, {key.split("/")[1]: run.read_json(key) for key in keys}


def pixels(run, name, grade=3):
    """What the generators' own actor makes of four rows."""
    maker = generator.Diffusion(run.url, recipes.named("debug"), "e", gpu=False, num_threads=1, judges=False)
    table = maker.rows({"generator_id": name, "grade": grade, "number": 0}, [0, 1, 2, 3], lambda: None)
    assert table["score"].null_count == 4, "scorers say it"
    return np.stack([np.frombuffer(row, np.uint8) for row in table["pixels"].to_pylist()])


def test_a_stock_lora_and_a_plain_pipeline_make_images(run, stock, tmp_path):
    code, found = take(run, stock, "--prompt", "a retina")
    assert code == 0
    ((name, record),) = found.items()
    assert (record["kind"], record["provenance"], record["photographs_seen"]) == ("imported", "imported", None)
    assert record["prompts"] == {"3": "a retina"}
    assert take(run, stock / lora.WEIGHTS)[1].keys() == {name}, "the same weights are the same generator"
    shutil.copytree(PHANTOM_BASE, tmp_path / "base")
    code, found = take(run, tmp_path / "base")
    assert code == 0
    (plain,) = set(found) - {name}
    adapted, base = pixels(run, name), pixels(run, plain)
    assert (adapted != base).any(axis=1).all()
    assert (pixels(run, plain) == base).all()


def test_only_those_that_are_named_make_images_and_none_enters_a_sweep(run, stock):
    _, found = take(run, stock)
    name, recipe = next(iter(found)), small_recipe()
    assert name not in {one.generator_id for one in finetune.planned(recipe, run)}
    assert not any(one.kind == "imported" for one in synthesize.generators(recipe, run)[0])
    asked = changed(recipe, synthesize={"imported": (name,)})
    made, left_out = synthesize.generators(asked, run)
    assert [one.generator_id for one in made] == [name]
    assert sorted(left_out) == sorted(one.generator_id for one in finetune.planned(recipe, run))
    with pytest.raises(MissingInput, match="no imported generator nobody"):
        synthesize.ready(changed(recipe, synthesize={"imported": ("nobody",)}), run)


def test_what_does_not_fit_is_one_sentence(run, tmp_path, capsys):
    before = take(run, tmp_path)[1]
    assert "holds neither" in " ".join(capsys.readouterr().out.split())
    folder = tmp_path / "lora"
    folder.mkdir()
    name = "unet.down_blocks.0.nowhere.to_q.lora"
    save_file({f"{name}.down.weight": torch.ones(2, 4), f"{name}.up.weight": torch.ones(4, 2)}, folder / lora.WEIGHTS)
    assert take(run, folder) == (2, before)
    assert "was made for another base" in " ".join(capsys.readouterr().out.split())
    other = tmp_path / "base"
    shutil.copytree(PHANTOM_BASE, other)
    config = json.loads((other / "scheduler" / "scheduler_config.json").read_text())
    (other / "scheduler" / "scheduler_config.json").write_text(json.dumps(config | {"beta_end": 0.5}))
    assert take(run, other) == (2, before)
    assert "is a whole pipeline, and finetune.base of this run is phantom" in " ".join(capsys.readouterr().out.split())
    assert take(Run(str(tmp_path / "none")), other)[0] == 2
