import dataclasses

import pytest

from raydr import lineage, recipes
from raydr.config import Finetune, Recipe, Sampler, Synthesize
from raydr.grades import GRADES
from raydr.sources import Ingest, PhantomSet

RECIPE = recipes.named("demo")
# A valid other value of each field of Finetune, and whose identity it changes: plain (and so both), ecc, or nobody's.
OTHER = {
    "base": ("elsewhere", "plain"),
    "revision": ("abc", ""),  # the base's fingerprint, which holds it, is an argument of its own
    "grades": ((1,), ""),
    "joint": (True, "plain"),
    "kinds": (("ecc", "plain"), ""),
    "px": (32, "plain"),
    "steps": (81, "plain"),
    "batch_pairs": (5, "plain"),
    "accumulation": (2, "plain"),
    "learning_rate": (2e-3, "plain"),
    "weight_decay": (0.0, "plain"),
    "max_grad_norm": (2.0, "plain"),
    "rank": (4, "plain"),
    "alpha": (4, "plain"),
    "targets": (("to_q",), "plain"),
    "full": (True, "plain"),
    "train_text_encoder": (True, "plain"),
    "compiled": (True, "plain"),  # other kernels, so other last bits
    "ema": (0.9, "plain"),
    "w_prior": (0.2, "plain"),
    "w_ecc": (0.2, "ecc"),
    "ecc_start": (41, "ecc"),
    "ecc_every": (11, "ecc"),
    "ecc_calls": (3, "ecc"),
    "ecc_batch": (17, "ecc"),
    "ecc_keep": (11, "ecc"),
    "ecc_threshold": (0.6, "ecc"),
    "ecc_select": (False, "ecc"),
    "ecc_sampler": ("ddim", "ecc"),
    "ecc_merge": (2, "ecc"),
    "ecc_pool": (24, "ecc"),
    "ecc_steps": (11, "ecc"),
    "ecc_guidance": (3.0, "ecc"),
    "ecc_signal_leak": (False, "ecc"),
    "checkpoint_every": (5, ""),
    "validate_every": (5, ""),
    "precision": ("bf16", "plain"),
    "gradient_checkpointing": (True, ""),
    "min_snr": (5.0, "plain"),
    "noise_offset": (0.1, "plain"),
}


def ids(recipe=RECIPE, data="d", base="b", ensemble="e"):
    """{kind: generator ids}"""
    found = {"plain": [], "ecc": []}
    for generator in lineage.generators(recipe, data, base, ensemble):
        found[generator.kind].append(generator.generator_id)
    return found


def test_every_field_of_fine_tuning_has_its_place():
    assert set(OTHER) == {field.name for field in dataclasses.fields(Finetune)}


@pytest.mark.parametrize("name", OTHER)
def test_what_changes_weights_changes_the_id(name):
    value, changes = OTHER[name]
    assert value != getattr(RECIPE.finetune, name)
    before, after = (
        ids(),
        ids(dataclasses.replace(RECIPE, finetune=dataclasses.replace(RECIPE.finetune, **{name: value}))),
    )
    same = {kind: bool(set(before[kind]) & set(after[kind])) for kind in before}
    assert same == {"plain": changes != "plain", "ecc": changes == ""}


def test_inputs_change_ids():
    assert not set(ids()["plain"]) & set(ids(data="other")["plain"])
    assert not set(ids()["plain"]) & set(ids(base="other")["plain"])
    assert not set(ids()["ecc"]) & set(ids(data="other")["ecc"])
    assert ids()["plain"] == ids(ensemble="other")["plain"], "plain generators never see the ensemble"
    assert not set(ids()["ecc"]) & set(ids(ensemble="other")["ecc"])


@pytest.mark.parametrize("change", [{"seed": 2}, {"replicate": 1}, {"fold": 0}])
def test_seed_replicate_and_fold_change_everything(change):
    other = dataclasses.replace(RECIPE, **change)
    for kind in ("plain", "ecc"):
        assert not set(ids()[kind]) & set(ids(other)[kind])
    assert lineage.ensemble_id(RECIPE, "d") != lineage.ensemble_id(other, "d")


def test_generators_in_the_order_of_training():
    found = lineage.generators(RECIPE, "d", "b", "e")
    assert [(g.kind, g.grades) for g in found] == [("plain", (1,)), ("plain", (3,)), ("ecc", (1,)), ("ecc", (3,))]
    assert [g.branch_id for g in found] == [g.generator_id for g in found[:2]] * 2
    assert [g.seed for g in found[:2]] == [g.seed for g in found[2:]], "both kinds start from the same adapter"
    assert len({g.generator_id for g in found}) == 4
    assert [g.generator_id.rsplit("-", 1)[0] for g in found] == ["plain-g1", "plain-g3", "ecc-g1", "ecc-g3"]


def test_growing_by_a_grade_keeps_the_generators_that_are_there():
    grown = dataclasses.replace(RECIPE, finetune=dataclasses.replace(RECIPE.finetune, grades=(4, 3, 1)))
    assert set(ids()["plain"]) < set(ids(grown)["plain"])
    assert set(ids()["ecc"]) < set(ids(grown)["ecc"])


def test_ecc_alone_branches_from_the_plain_run_that_would_have_been():
    alone = dataclasses.replace(RECIPE, finetune=dataclasses.replace(RECIPE.finetune, kinds=("ecc",)))
    assert ids(alone) == {"plain": [], "ecc": ids()["ecc"]}


def test_a_joint_generator_makes_all_grades():
    joint = dataclasses.replace(RECIPE, finetune=dataclasses.replace(RECIPE.finetune, joint=True))
    found = lineage.generators(joint, "d", "b", "e")
    assert [g.grades for g in found] == [GRADES, GRADES]
    assert found[0].generator_id.startswith("plain-all-")


def test_seeds_of_samples():
    """Equal for plain and ECC on the same index, different in every other respect."""
    plain, _, ecc, _ = lineage.generators(RECIPE, "d", "b", "e")
    assert lineage.sample_seed(RECIPE, plain.seed, 1, 7) == lineage.sample_seed(RECIPE, ecc.seed, 1, 7)
    seeds = [lineage.sample_seed(RECIPE, seed, g, i) for seed in (1, 2) for g in GRADES for i in range(50)]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"count": 10_000}, True),
        ({"accepted": 500}, True),
        ({"band": (0.1, 0.2)}, True),
        ({"max_images": 7}, True),
        ({"max_starts": 9}, True),
        ({"shard_size": 64}, False),
        ({"sampler": Sampler(steps=11)}, False),
        ({"sampler": Sampler(guidance=3.0)}, False),
        ({"sampler": Sampler(batch=8)}, False),
        ({"sampler": Sampler(name="ddim")}, False),
        ({"sampler": Sampler(precision="bf16")}, False),
        ({"sampler": Sampler(guidance_interval=(0.3, 5.0))}, False),
        ({"sampler": Sampler(compiled=True)}, False),
        ({"max_cost": 5.0, "max_gpu_seconds": 60.0, "hang_seconds": 1.0, "max_quarantine": 0.5}, True),
    ],
)
def test_quotas_and_budgets_are_no_part_of_a_sample(change, same):
    other = dataclasses.replace(RECIPE, synthesize=dataclasses.replace(RECIPE.synthesize, **change))
    before, after = (lineage.synthetic_fingerprint(recipe, "g", "e") for recipe in (RECIPE, other))
    assert (before == after) == same
    assert set(lineage.OUTSIDE["synthesize"]) <= {field.name for field in dataclasses.fields(Synthesize)}


def test_options_that_came_later_leave_earlier_runs_as_they_were():
    """Fingerprints of the first demo, from before guidance intervals, compiling and costs: runs on disk go on."""
    first = dataclasses.replace(RECIPE.synthesize, sampler=Sampler(batch=16))
    first = dataclasses.replace(RECIPE, synthesize=first)
    assert lineage.synthetic_fingerprint(first, "g", "e") == "ca6b30271b1ddf7d"
    assert "guidance_interval" not in lineage.inside(RECIPE, "synthesize")["sampler"]


def test_the_judges_are_part_of_a_scored_sample():
    one = lineage.synthetic_fingerprint(RECIPE, "g", "e")
    assert one != lineage.synthetic_fingerprint(RECIPE, "g", "f")
    assert one != lineage.synthetic_fingerprint(RECIPE, "h", "e")


def test_phantom_cohorts_are_disjoint():
    """Of seed, replicate and set; and two sets of equal settings are not one set twice."""
    twins = Recipe("x", num_replicates=2, ingest=Ingest(phantoms=(PhantomSet(), PhantomSet())))
    parts = [dataclasses.replace(twins.replicate_of(r), seed=seed) for seed in (1, 2) for r in range(2)]
    prints = [lineage.phantom_fingerprint(part, position) for part in parts for position in range(2)]
    assert len(set(prints)) == 8
    with pytest.raises(AssertionError):
        lineage.phantom_seed(RECIPE, 20)


def test_phantom_fingerprints_know_what_is_drawn():
    base = Recipe("x", ingest=Ingest(phantoms=(PhantomSet(),)))
    others = [
        Ingest(phantoms=(PhantomSet(dataset="APTOS"),)),
        Ingest(phantoms=(PhantomSet(split="test"),)),
        Ingest(phantoms=(PhantomSet(counts=(1, 1, 1, 1, 1)),)),
        Ingest(phantoms=(PhantomSet(),), px=32),
        Ingest(phantoms=(PhantomSet(),), shard_size=32),
    ]
    prints = [lineage.phantom_fingerprint(dataclasses.replace(base, ingest=ingest), 0) for ingest in others]
    assert len({lineage.phantom_fingerprint(base, 0), *prints}) == 6
    more = dataclasses.replace(base, ingest=Ingest(phantoms=(PhantomSet(), PhantomSet(split="test"))))
    assert lineage.phantom_fingerprint(more, 0) == lineage.phantom_fingerprint(base, 0), "another set changes nothing"


def test_keys_sort_like_their_numbers():
    assert lineage.shard_key("g", 3, 42) == "synthetic/g/g3-000042.parquet"
    assert lineage.sample_id("g", 3, 42) == "g/g3/42"
