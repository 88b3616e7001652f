import dataclasses
import json

import pytest
from published import DDR_TRAINVAL_COUNTS

from raydr import config, graders, recipes, sources
from raydr.config import Recipe
from raydr.errors import UserError
from raydr.identity import canonical
from raydr.plan import check, describe
from raydr.record import restore
from raydr.selection import ARMS
from raydr.storage import Run


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_each_recipe_is_complete(name, tmp_path):
    recipe = recipes.named(name)
    assert recipe.name == name
    assert recipe == recipes.named(name), "a recipe is a function of nothing"
    check(recipe)
    assert [row.stage for row in describe(recipe, Run(tmp_path))] == [
        "ingest", "ensemble", "finetune", "synthesize", "sweep"
    ]  # fmt: skip
    assert recipes.RECIPES[name].__doc__.startswith("`raydr ")
    assert set(recipe.sweep.arms) <= set(ARMS)
    assert len(set(recipe.sweep.arms)) == len(recipe.sweep.arms)


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_the_quota_and_the_sweep_look_at_one_band(name):
    recipe = recipes.named(name)
    assert recipe.synthesize.band == recipe.sweep.band


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_recipe_survives_json(name):
    recipe = recipes.named(name)
    again = restore(Recipe, json.loads(json.dumps(dataclasses.asdict(recipe))))
    assert again == recipe
    assert canonical(again) == canonical(recipe)


def test_other_values_of_every_field_survive_json():
    """No field is left at its default, so that none can be dropped on the way."""
    grader = config.Grader(
        backbone="x", head="lanet", lanet_stage="s", pretrained=True, weights="w", px=48, steps=7, batch=9,
        optimizer="sgd", learning_rate=0.5, weight_decay=0.25, loss="focal", loss_parameter=1.5, sampler="sqrt",
        mixup=0.1, soft_labels=0.2, augmentation="paper", precision="fp32", evaluate_every=3,
    )  # fmt: skip
    recipe = Recipe(
        name="other", seed=5, num_replicates=2, replicate=1, fold=2,
        ingest=sources.Ingest(
            source="ddr", px=48, phantoms=(sources.PhantomSet("APTOS", "test", (1, 2, 3, 4, 5)),), crop="paper",
            max_quarantine=0.5, shard_size=8,
        ),
        ensemble=config.Ensemble(members=(config.Member(grader, 1, "audit", 4),), inner_folds=3),
        finetune=config.Finetune(
            base="b", revision="r", grades=(2,), joint=True, kinds=("plain",), px=48, steps=9, batch_pairs=5,
            accumulation=2, learning_rate=0.1, weight_decay=0.2, max_grad_norm=0.3, rank=3, alpha=5, targets=("to_q",),
            full=True, w_prior=0.4, w_ecc=0.5, ecc_start=3, ecc_every=4, ecc_calls=5, ecc_batch=6, ecc_keep=5,
            ecc_threshold=0.6, ecc_select=False, ecc_steps=7, ecc_guidance=1.5, checkpoint_every=8, validate_every=9,
            gradient_checkpointing=True, min_snr=5.0, noise_offset=0.1, ema=0.9, ecc_sampler="ddim",
            ecc_merge=2, ecc_pool=6, ecc_signal_leak=True, compiled=True,
        ),
        synthesize=config.Synthesize(
            sampler=config.Sampler("ddim", 3, 1.5, 4, "bf16", signal_leak=True), count=5, accepted=6, max_images=70,
            band=(0.1, 0.2), shard_size=8, max_starts=2, max_gpu_seconds=3.0, max_cost=4.0, hang_seconds=5.0,
            max_quarantine=0.5, imported=("imported-g1-abc",),
        ),
        sweep=config.Sweep(
            arms=("band",), num_seeds=2, grader=grader, grades=(2,), ratio=0.5, count=9, band=(0.1, 0.2),
            map_bands=((0.1, 0.3), (0.2, 0.4)), map_ratios=(0.5, 1.0), map_seeds=2, keep_weights=("band",),
            axes=graders.Axes(losses=("focal=1",), mixups=(0.2,), arms=("band",), num_random=2),
            search=graders.Search("band", 3, "optuna", True, (0.1, 0.2), (0.3, 0.4), ("ce",), (0.1,)),
        ),
        report=config.Report(bootstrap_draws=10, confidence=0.9, gallery=3),
    )  # fmt: skip
    default = Recipe(name="default")
    for part in ("ingest", "finetune", "synthesize", "sweep", "report"):
        for field in dataclasses.fields(getattr(recipe, part)):
            mine, theirs = (getattr(getattr(whole, part), field.name) for whole in (recipe, default))
            # `full` leaves one precision only, and no text encoder's LoRA.
            assert mine != theirs or field.name in ("precision", "train_text_encoder"), (
                f"{part}.{field.name} is at its default here"
            )
    assert restore(Recipe, json.loads(json.dumps(dataclasses.asdict(recipe)))) == recipe


def test_an_unknown_recipe_names_the_known_ones():
    with pytest.raises(UserError, match="no recipe 'demmo': choose one of demo, debug, phantom, ddr_sd15"):
        recipes.named("demmo")


@pytest.mark.parametrize("name", ["demo", "phantom"])
def test_phantom_training_sets_have_ddrs_proportions(name):
    counts = recipes.named(name).ingest.phantoms[0].counts
    for count, real in zip(counts, DDR_TRAINVAL_COUNTS, strict=True):
        assert count / sum(counts) == pytest.approx(real / sum(DDR_TRAINVAL_COUNTS), abs=0.007)


@pytest.mark.parametrize("name", ["demo", "debug", "phantom"])
def test_phantom_test_sets_are_balanced(name):
    for part in recipes.named(name).ingest.phantoms:
        if part.split in ("validation", "test"):
            assert len(set(part.counts)) == 1
    if name == "phantom":
        assert all(part.counts[0] >= 500 for part in recipes.named(name).ingest.phantoms if part.split == "test")


@pytest.mark.parametrize("name", ["demo", "debug", "phantom"])
def test_the_ceiling_has_enough_fresh_photographs(name):
    """N = max - n(g) at ratio 1; fewer would hold every arm back."""
    recipe = recipes.named(name)
    train, fresh = (
        next(part.counts for part in recipe.ingest.phantoms if part.split == split) for split in ("train", "fresh")
    )
    for grade in recipe.sweep.grades:
        # The debug recipe counts on fewer.
        assert fresh[grade] >= (max(train) - train[grade] if name != "debug" else 1)


def test_the_paper_values():
    """Zhang et al., MICCAI 2025, sections 2-4."""
    recipe = recipes.named("ddr_sd15")
    finetune, sampler = recipe.finetune, recipe.synthesize.sampler
    assert (finetune.batch_pairs * finetune.accumulation, finetune.learning_rate) == (96, 1e-5)
    assert (finetune.w_prior, finetune.w_ecc, finetune.ecc_threshold) == (0.1, 1e-3, 0.7)
    assert (finetune.ecc_start, finetune.ecc_every, finetune.steps) == (500, 10, 1000)
    assert (finetune.ecc_keep, finetune.ecc_batch) == (12, 16)
    assert (sampler.steps, sampler.guidance) == (30, 7.5)
    assert recipe.synthesize.band == (0.7, 0.9)
    assert recipe.synthesize.count == 5000
