import json
from collections import Counter
from dataclasses import fields

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from raydr import recipes
from raydr.diffusion import base
from raydr.diffusion.cohorts import FIRST_BASE_SEED, BaseConfig, cohorts, proportional
from raydr.diffusion.model import load_base
from raydr.diffusion.parts import TOKENS
from raydr.errors import UserError
from raydr.grades import APTOS_COUNTS, EYEPACS_COUNTS, GRADES, STAGES
from raydr.lineage import phantom_seed
from raydr.prompts import instance_prompt


def pieces(tokenizer, prompt):
    return tokenizer.convert_ids_to_tokens(tokenizer(prompt).input_ids)[1:-1]


@pytest.mark.parametrize("dataset", ["DDR", "EyePACS", "APTOS", "Messidor", "IDRiD"])
@pytest.mark.parametrize("grade", GRADES)
def test_each_word_of_a_prompt_is_one_token(shared, dataset, grade):
    words = ["a", "color", "fundus", "image", "from", dataset.lower(), "dataset", "in", *STAGES[grade].lower().split()]
    assert pieces(shared.tokenizer, instance_prompt(dataset, grade)) == [
        f"{word}</w>" for word in [*words, "stage", "."]
    ]


def test_stages_differ_in_their_tokens(shared):
    ids = [tuple(shared.tokenizer(instance_prompt("DDR", grade)).input_ids) for grade in GRADES]
    assert len(set(ids)) == len(GRADES)


def test_unknown_words_are_spelt(shared):
    assert pieces(shared.tokenizer, "Zeiss 4") == ["z", "e", "i", "s", "s</w>", "4</w>"]
    padded = shared.tokenizer("", padding="max_length", max_length=TOKENS).input_ids
    assert padded == [0] + [1] * (TOKENS - 1)


def test_cohorts_have_the_proportions_of_their_data_sets():
    rows = cohorts(BaseConfig(num_phantoms=2000))
    for dataset, counts in (("EyePACS", EYEPACS_COUNTS), ("APTOS", APTOS_COUNTS)):
        found = Counter(row["grade"] for row in rows if row["dataset"] == dataset)
        for grade in GRADES:
            assert found[grade] == pytest.approx(2000 * counts[grade] / sum(counts), abs=0.51)
    assert {(row["dataset"], row["labelled"]) for row in rows} == {("EyePACS", False), ("APTOS", True)}
    assert len({(row["seed"], row["index"]) for row in rows}) == len(rows)


def test_every_grade_is_seen_at_least_once():
    assert proportional(10, EYEPACS_COUNTS) == [7, 1, 2, 1, 1]


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_no_recipe_can_use_a_phantom_that_the_base_has_seen(name):
    """Cohort seeds of the lowest and highest seed, all replicates and sets: distinct, and below the base's."""
    from dataclasses import replace

    whole = recipes.named(name)
    sets = len(whole.ingest.phantoms)
    seen = {
        phantom_seed(replace(whole, seed=seed).replicate_of(replicate), position)
        for seed in (0, 1, 2, 899)
        for replicate in range(50)
        for position in range(20)
    }
    assert len(seen) == 4 * 50 * 20
    assert sets <= 20
    assert max(seen) < FIRST_BASE_SEED <= min(row["seed"] for row in cohorts(BaseConfig(num_phantoms=5)))


def test_the_record_tells_what_the_base_saw(folder):
    record = json.loads((folder / "base.json").read_text())
    rows = cohorts(BaseConfig(num_phantoms=20))
    for name, counts in record["phantoms_seen_by_grade"].items():
        found = Counter(row["grade"] for row in rows if row["dataset"] == name.split()[0])
        assert counts == [found[grade] for grade in GRADES]
    assert record["config"]["num_phantoms"] == 20


def test_reconstruction_keeps_shape_and_order(shared):
    images = np.zeros((3, 32, 32, 3), np.uint8)
    images[1] = 255
    again = base.reconstruct(shared.vae, images)
    assert (again.shape, again.dtype) == (images.shape, np.uint8)
    assert np.array_equal(again[0], again[2])
    assert not np.array_equal(again[0], again[1])


def test_mirrored_latents_follow_the_images(shared):
    images = np.stack(
        [np.tile(np.arange(0, 256, 8, dtype=np.uint8)[:, None], (32, 1, 3)), np.zeros((32, 32, 3), np.uint8)]
    )
    latents = base.encode_all(shared.vae, images)
    assert latents.shape == (4, 6, 16, 16)
    mirrored = base.encode_all(shared.vae, np.ascontiguousarray(images[:, :, ::-1]))
    torch.testing.assert_close(latents[2:], mirrored[:2])


def test_a_build_is_not_continued_with_other_settings(tmp_path):
    def cut(event):
        raise CutError

    for _ in range(2):
        with pytest.raises(CutError):
            base.build(BaseConfig(num_phantoms=2), tmp_path, on_event=cut)
    with pytest.raises(UserError, match="other settings"):
        base.build(BaseConfig(num_phantoms=3), tmp_path, on_event=cut)


class CutError(Exception):
    pass


@pytest.mark.slow
def test_a_cut_build_ends_in_the_same_bytes(tmp_path, monkeypatch):
    """Cut in every phase between its checkpoints (every 50 steps), then called again."""
    steps = {field.name: 52 for field in fields(BaseConfig) if field.name.endswith("_steps")}
    config = BaseConfig(num_phantoms=8, batch=2, **steps)
    phases = []
    base.build(config, tmp_path / "whole", on_event=lambda event: phases.append(event["phase"]))
    assert phases[0] == "phantoms"
    work = tmp_path / "cut" / "work"

    def cut_after(phase):
        def on_event(event):
            # Told just before the checkpoint of step 50 is written: those steps are lost.
            if event["phase"] == phase:
                raise CutError

        return on_event

    for phase in dict.fromkeys(phases):
        with pytest.raises(CutError):
            base.build(config, tmp_path / "cut", work, cut_after(phase))
    with monkeypatch.context() as patch:  # all trained, nothing saved yet
        patch.setattr(base, "save", lambda *arguments: cut_after("save")({"phase": "save"}))
        with pytest.raises(CutError):
            base.build(config, tmp_path / "cut", work, lambda event: None)
    base.build(config, tmp_path / "cut", work, lambda event: None)
    for part in ("text_encoder/model", "vae/diffusion_pytorch_model", "unet/diffusion_pytorch_model"):
        one, other = (load_file(tmp_path / name / f"{part}.safetensors") for name in ("whole", "cut"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert (tmp_path / "whole" / "base.json").read_text() == (tmp_path / "cut" / "base.json").read_text()
    assert load_base(str(tmp_path / "cut")).vae.config.scaling_factor != 0.18215
