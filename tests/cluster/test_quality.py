"""`raydr quality` without training anything: features are injected, images are tiny."""

import dataclasses
import json

import numpy as np
import pytest
from trainset.tables import picture, write_real, write_samples

from raydr import cli, images, recipes
from raydr.cluster import quality
from raydr.errors import MissingInput
from raydr.grading.quality import quality as compare
from raydr.storage import Run

SWEEP = dataclasses.replace(recipes.debug().sweep, band=(0.7, 0.9))
RECIPE = dataclasses.replace(recipes.debug(), sweep=SWEEP)


def flat(pixels):
    """The injected features: the pixels themselves."""
    return pixels.reshape(len(pixels), -1).astype(np.float32) / 255


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "features", lambda *arguments: (flat, {"features": "pixels", "features_id": "p"}))
    target = Run(tmp_path / "out")
    write_real(target, (1, 12, 1, 3, 1))
    write_real(target, (1, 7, 1, 7, 1), "validation")
    write_real(target, (9,) * 5, "test")
    return target


def pixels_of(numbers):
    return flat(np.stack([images.decode(picture(number)) for number in numbers]))


def test_images_are_compared_with_the_training_photographs_of_their_grade(run):
    near = [1.0] * 7 + [0.1]
    write_samples(run, "plain-g1-a", 1, [0.8] * 6 + [0.1, 0.8], 1, nearest_distance=near)
    write_samples(run, "plain-g1-a", 1, [0.8] * 8, 0)
    write_samples(run, "plain-g3-b", 3, [0.8] * 8)
    result = quality.run(RECIPE, run)
    assert result == json.loads(run.read(quality.RESULT))
    assert (result["features"], result["dimensions"], result["band"]) == ("pixels", 48, [0.7, 0.9])
    mild = result["quality"]["plain-g1-a"]["1"]
    # tables.py draws the pictures by index % 16, and photographs by 1000 grade + index.
    expected = dataclasses.asdict(compare(pixels_of(range(16)), pixels_of(range(1000, 1012))))
    assert {name: mild[name] for name in expected} == pytest.approx(expected)
    assert (mild["num_images"], mild["num_photographs"]) == (16, 12)
    inside = dataclasses.asdict(compare(pixels_of(range(14)), pixels_of(range(1000, 1012))))
    assert mild["in_band"] == pytest.approx(inside)  # 14 lies below the band, 15 is memorised
    # Validation photographs of the test data are the same pictures as the training ones: nothing is nearer.
    assert (mild["reference"]["num_images"], mild["reference"]["precision"]) == (7, 1.0)
    severe = result["quality"]["plain-g3-b"]["3"]
    assert (severe["num_images"], severe["num_photographs"], severe["kid"]) == (8, 3, None)


def test_at_most_so_many_are_read_the_first_by_index(run, monkeypatch):
    monkeypatch.setattr(quality, "MOST", 10)
    write_samples(run, "plain-g1-a", 1, [0.8] * 8, 1)
    write_samples(run, "plain-g1-a", 1, [0.8] * 8, 0)
    mild = quality.run(RECIPE, run)["quality"]["plain-g1-a"]["1"]
    assert (mild["num_images"], mild["num_photographs"]) == (10, 10)
    rows, encoded = quality.samples(run, dict(quality.shards.commits(run, "synthetic")))
    assert rows["index"].to_pylist() == list(range(10))
    assert encoded == [picture(index) for index in range(10)]


def test_nothing_to_compare(run):
    with pytest.raises(MissingInput, match="run `raydr synthesize` first"):
        quality.run(RECIPE, run)


def test_the_command(run, capsys):
    write_samples(run, "plain-g1-a", 1, [0.8] * 8)
    record = {"recipe": dataclasses.asdict(RECIPE), "versions": {}, "revision": None}
    run.replace_json("recipe.json", record)
    assert cli.main(["quality", run.url]) == 0
    told = capsys.readouterr().out
    assert "report/quality.json" in told
    assert "Features: pixels" in told


def test_the_run_s_own_graders_are_the_default(monkeypatch, tmp_path):
    """Audit members where there are any, since ECC has optimised what the others see."""
    from raydr.config import Grader, Member
    from raydr.grading.backbones import build
    from raydr.grading.ensemble import Ensemble, Meta

    grader = Grader(backbone="test_resnet", px=32, steps=1)
    asked = []

    def load(recipe, target, ensemble_id, role, device):
        asked.append((ensemble_id, role))
        return Ensemble([(build(grader), Meta("a", grader, 0))])

    monkeypatch.setattr(quality.ensemble, "require", lambda recipe, target: "e-1")
    monkeypatch.setattr(quality.ensemble, "load", load)
    extract, about = quality.features(RECIPE, Run(tmp_path), None)
    assert extract(np.zeros((2, 32, 32, 3), np.uint8)).shape[0] == 2
    members = (*RECIPE.ensemble.members, Member(grader, role="audit", seed=9))
    audited = dataclasses.replace(RECIPE, ensemble=dataclasses.replace(RECIPE.ensemble, members=members))
    assert quality.features(audited, Run(tmp_path), None)[1] == {"features": "graders (audit)", "features_id": "e-1"}
    assert about == {"features": "graders (score)", "features_id": "e-1"}
    assert asked == [("e-1", "score"), ("e-1", "audit")]
