"""Bare loops and peers do the stages' work: on a small run that the kernels made, without Ray."""

import shutil

import numpy as np
import pytest
from PIL import Image

from raydr import lineage, schema, shards
from raydr.bench import bare, peers, workload
from raydr.cluster import ensemble, finetune
from raydr.images import decode
from raydr.storage import Run

from .prepared import prepare, small

# Half a minute of one core.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    target = Run(str(tmp_path_factory.mktemp("prepared") / "run"))
    prepare(target, small())
    return target


@pytest.fixture
def copied(run, tmp_path):
    shutil.copytree(run.local, tmp_path / "copy")
    return Run(str(tmp_path / "copy"))


def test_synthesis_leaves_whole_shards_of_the_stages_samples(copied):
    recipe = small()
    bare.synthesize(copied.url, recipe, threads=1, device="cpu")
    rows = shards.read(copied, "synthetic", schema.SYNTHETIC).to_pylist()
    (generator,) = finetune.planned(recipe, copied)
    assert [row["sample_id"] for row in rows] == [lineage.sample_id(generator.generator_id, 3, k) for k in range(16)]
    assert [row["seed"] for row in rows] == [lineage.sample_seed(recipe, generator.seed, 3, k) for k in range(16)]
    probabilities = np.array([row["probabilities"] for row in rows])
    assert probabilities.shape == (16, 3, 5)
    np.testing.assert_allclose([row["score"] for row in rows], probabilities[:, :, 3].mean(1), atol=1e-6)
    assert decode(rows[0]["image"]).shape == (32, 32, 3)
    assert len({row["sha256"] for row in rows}) == 16
    points = workload.committed(copied, "synthetic", 0.0)
    assert [units for units, _ in points] == [8, 16]


def test_two_shares_score_every_shard_once(copied):
    recipe = small()
    workload.write_samples(copied, 3)
    for share in (0, 1):
        bare.score(copied.url, recipe, threads=1, share=share, of=2, device="cpu")
    name = ensemble.identity(recipe, copied)
    table = shards.read(copied, f"scores/{name}", schema.SCORES)
    assert table.num_rows == len(set(table["sample_id"].to_pylist())) == 3 * 64
    assert [units for units, _ in workload.committed(copied, f"scores/{name}", 0.0)] == [64, 128, 192]


def test_training_logs_every_step(copied):
    bare.train_generator(copied.url, small(), threads=1, device="cpu")
    events = workload.logged(copied.path("logs"), 4.0)
    assert len(events) == small().finetune.steps - 1
    assert [moment for moment, _ in events] == sorted(moment for moment, _ in events)


def test_two_shares_train_every_grader_once(copied):
    for share in (0, 1):
        bare.train_graders(copied.url, small(), threads=1, share=share, of=2, device="cpu")
    rows = shards.read(copied, "trials/results", schema.TRIALS).to_pylist()
    assert sorted(row["seed"] for row in rows) == [0, 1]
    predictions = shards.read(copied, "trials/predictions", schema.PREDICTIONS)
    assert predictions.num_rows == 2 * (20 + 40)  # validation and test photographs of the debug recipe


def test_the_published_scheme_saves_what_it_accepts(copied, monkeypatch):
    monkeypatch.setattr(peers, "PUBLISHED_STEPS", 2)
    monkeypatch.setattr(peers, "PUBLISHED_BAND", (0.0, 1.0))
    peers.published(copied.url, small(), threads=1, batches=1, device="cpu")
    said = copied.read_json(workload.PROGRESS)
    files = sorted(copied.path("published").glob("*.png"))
    assert said["made"] == 32
    assert said["accepted"] == len(files) == 24  # the best 12 of each 16
    assert np.asarray(Image.open(files[0])).shape == (32, 32, 3)
    assert [units for _, units in said["events"]] == [16, 16]


def test_the_stock_loop_saves_everything(copied, monkeypatch):
    monkeypatch.setattr(peers, "PUBLISHED_STEPS", 2)
    peers.stock(copied.url, small(), threads=1, batches=1, device="cpu")
    assert len(list(copied.path("stock").glob("*.png"))) == 32
    assert "accepted" not in copied.read_json(workload.PROGRESS)


def test_the_accelerate_loop_takes_as_many_steps(copied):
    recipe = small()
    peers.accelerate(copied.url, recipe, threads=1, device="cpu")
    events = copied.read_json(workload.PROGRESS)["events"]
    assert [units for _, units in events] == [2.0 * recipe.finetune.batch_pairs] * recipe.finetune.steps
