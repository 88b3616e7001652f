import ast
import dataclasses
import inspect

import pytest

from raydr import config, graders, shapes, sources
from raydr.config import Ensemble, Finetune, Grader, Member, Recipe, Sampler, Sweep, Synthesize
from raydr.errors import UserError
from raydr.shapes import SHAPES, Shape
from raydr.sources import Ingest, PhantomSet

GRADER = Grader()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Ingest(px=31), "ingest.px must be at least 32, not 31"),
        (lambda: Ingest(max_quarantine=1.1), "ingest.max_quarantine"),
        (lambda: Ingest(crop="square"), "'circle' or 'paper', not 'square'"),
        (lambda: Ingest(shard_size=0), "ingest.shard_size"),
        (lambda: PhantomSet(split="tset"), "one of train, validation, .*, not 'tset'"),
        (lambda: PhantomSet(counts=(1, 1, -1, 1, 1)), "must not be negative"),
        (lambda: Grader(head="two"), "'plain' or 'lanet', not 'two'"),
        (lambda: Grader(optimizer="adam"), "'adamw' or 'sgd', not 'adam'"),
        (lambda: Grader(sampler="fair"), "unknown sampler 'fair'"),
        (lambda: Grader(augmentation="heavy"), "unknown augmentation 'heavy'"),
        (lambda: Grader(precision="fp8"), "unknown precision 'fp8'"),
        (lambda: Grader(steps=0), "at least 1 step"),
        (lambda: Grader(batch=1), "a batch of 2"),
        (lambda: Ensemble(members=(Member(GRADER, role="judge"),)), "'score' or 'audit', not 'judge'"),
        (lambda: Ensemble(members=(Member(GRADER, inner_fold=5),)), r"inner_fold 5 is outside 0\.\.4"),
        (lambda: Ensemble(members=(Member(GRADER, inner_fold=-1),)), r"inner_fold -1 is outside 0\.\.4"),
        (lambda: Finetune(grades=(1, 5)), "not within 0-4"),
        (lambda: Finetune(kinds=()), "'plain', 'ecc'"),
        (lambda: Finetune(kinds=("plain", "eec")), "'plain', 'ecc'"),
        (lambda: Finetune(steps=0), "finetune.steps"),
        (lambda: Finetune(ecc_start=0), "finetune.ecc_start must be at least 1"),
        (lambda: Finetune(steps=40, ecc_start=40), "finetune.ecc_start 40 must lie before the last step 40"),
        (lambda: Finetune(ecc_keep=17), r"finetune.ecc_keep must lie in 1\.\.ecc_batch"),
        (lambda: Finetune(ecc_keep=0), "finetune.ecc_keep"),
        (lambda: Finetune(precision="fp8"), "fp32, bf16 or fp16, not 'fp8'"),
        (lambda: Finetune(full=True, precision="bf16"), "finetune.full"),
        (lambda: Finetune(batch_pairs=0), "finetune.batch_pairs must be at least 1, not 0"),
        (lambda: Finetune(ecc_every=0), "finetune.ecc_every must be at least 1, not 0"),
        (lambda: Finetune(rank=0), "finetune.rank must be at least 1, not 0"),
        (lambda: Sampler(name="euler"), "unknown sampler 'euler'"),
        (lambda: Sampler(steps=0), "sampler.steps"),
        (lambda: Sampler(batch=0), "sampler.batch"),
        (lambda: Synthesize(band=(0.9, 0.7)), "0 <= low < high <= 1"),
        (lambda: Synthesize(band=(0.7, 1.1)), "0 <= low < high <= 1"),
        (lambda: Synthesize(shard_size=40), "no whole number of compute batches of 16"),
        (lambda: Synthesize(count=0), "synthesize.count"),
        (lambda: Sweep(num_seeds=0), "sweep.num_seeds"),
        (lambda: Sweep(ratio=-0.1), "sweep.ratio"),
        (lambda: Recipe("x", num_replicates=0), r"num_replicates must lie in 1\.\.50"),
        (lambda: Recipe("x", num_replicates=51), r"num_replicates must lie in 1\.\.50"),
        (lambda: Recipe("x", seed=900), r"0\.\.899, not 900"),
        (lambda: Recipe("x", seed=-1), r"0\.\.899, not -1"),
        (lambda: Recipe("x", ingest=Ingest(phantoms=(PhantomSet(),) * 21)), "more than 20 sets"),
    ],
)
def test_each_wrong_value_is_one_sentence(make, words):
    with pytest.raises(UserError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_the_limits_themselves_are_allowed():
    Ingest(px=32, max_quarantine=0)
    Finetune(steps=41, ecc_start=40, ecc_keep=16)
    Finetune(steps=1, kinds=("plain",))  # without ECC its start does not matter
    Synthesize(band=(0.0, 1.0), shard_size=48)
    Recipe("x", seed=899, num_replicates=50)


@pytest.mark.parametrize(
    "kind", [Ingest, PhantomSet, Grader, Ensemble, Finetune, Sampler, Synthesize, Sweep, Recipe, Shape, Member]
)
def test_configurations_are_frozen(kind):
    assert kind.__dataclass_params__.frozen


def test_replicates_are_the_same_experiment_on_another_cohort():
    whole = Recipe("x", seed=3, num_replicates=4)
    parts = [whole.replicate_of(k) for k in range(4)]
    assert [part.replicate for part in parts] == [0, 1, 2, 3]
    assert all(dataclasses.replace(part, replicate=0, num_replicates=4) == whole for part in parts)


def test_shapes_name_themselves():
    assert all(shape.name == name for name, shape in SHAPES.items())
    assert SHAPES["laptop"].generator_gpus == SHAPES["laptop"].train_gpus == 0
    assert SHAPES["cluster"].address == "auto"


@pytest.mark.parametrize(
    "settings",
    [
        *(config.Finetune, config.Sampler, config.Synthesize, config.Report, config.Recipe),
        *(graders.Grader, graders.Member, graders.Ensemble, graders.Axes, graders.Search, graders.Sweep),
        *(shapes.Shape, sources.Ingest, sources.PhantomSet),
    ],
)
def test_every_field_says_what_it_does(settings):
    """In a comment right above it, which is its help: tyro gives a field without one that of its neighbour."""
    lines = inspect.getsource(settings).splitlines()
    fields = [node for node in ast.parse("\n".join(lines)).body[0].body if isinstance(node, ast.AnnAssign)]
    assert {node.target.id for node in fields} == {field.name for field in dataclasses.fields(settings)}
    for node in fields:
        assert lines[node.lineno - 2].strip().startswith("# "), f"{settings.__name__}.{node.target.id}"
