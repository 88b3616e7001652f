import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from grading.blobs import blobs
from raydr.config import Grader, Member
from raydr.errors import DamagedData, LeakageError, MissingInput, UserError
from raydr.grading import calibration, ensemble, pixels, training
from raydr.grading.members import train_member

TINY = Grader(backbone="test_resnet", px=32, steps=3, batch=10)
IMAGES, GRADES = blobs(100)
IDS = [f"DDR/{row}" for row in range(100)]
DIGESTS = [f"{row:064x}" for row in range(100)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Members a (32 px, score), b (24 px, score) and c (audit), trained for three steps each."""
    root = tmp_path_factory.mktemp("ensemble")
    members = {
        "a": Member(TINY, inner_fold=0, seed=1),
        "b": Member(dataclasses.replace(TINY, px=24, head="lanet"), inner_fold=1, seed=2),
        "c": Member(TINY, inner_fold=2, role="audit", seed=3),
    }
    for name, member in members.items():
        trained, meta = train_member(
            name, member, 5, IMAGES, np.arange(100), GRADES, IDS, DIGESTS, seed=7, fold=2, num_threads=1
        )
        ensemble.save_member(root / name, trained.model, meta)
    return root


def test_a_saved_member_is_the_model_that_was_trained(tmp_path):
    grader = dataclasses.replace(TINY, head="lanet", loss="logit_adjustment_post", sampler="instance")
    trained = training.train(grader, IMAGES, np.arange(90), GRADES[:90], seed=1, num_threads=1)
    ensemble.save_member(tmp_path / "m", trained.model, ensemble.Meta("m", grader, 1))
    model, meta = ensemble.load_member(tmp_path / "m")
    one, other = (training.predict(m, IMAGES, np.arange(20)) for m in (trained.model, model))
    assert (one == other).all()
    assert meta.grader == grader


def test_the_record_survives(folder):
    meta = ensemble.load_meta(folder / "b")
    assert (meta.name, meta.role, meta.seed, meta.fold, meta.inner_fold) == ("b", "score", 2, 2, 1)
    assert meta.grader == dataclasses.replace(TINY, px=24, head="lanet")
    assert len(meta.trained_on) == 80
    assert len(meta.calibrated_on) == 20
    assert not set(meta.trained_on) & set(meta.calibrated_on)
    assert meta.data_fingerprint == ensemble.data_fingerprint(reversed(DIGESTS))
    assert meta.data_fingerprint != ensemble.data_fingerprint(DIGESTS[:-1])
    assert 0.1 <= meta.temperature <= 10
    assert {
        "balanced_accuracy",
        "recall_3",
        "expected_calibration_error",
        "expected_calibration_error_tempered",
    } <= set(meta.validation)
    record = json.loads((folder / "b" / "grader.json").read_text())
    assert record["grader"]["backbone"] == "test_resnet"
    assert isinstance(record["trained_on"], str)


def test_roles(folder):
    assert [meta.name for meta in ensemble.Ensemble.load(folder).metas] == ["a", "b"]
    assert [meta.name for meta in ensemble.Ensemble.load(folder, "audit").metas] == ["c"]
    assert [meta.name for meta in ensemble.Ensemble.load(folder, None).metas] == ["a", "b", "c"]
    with pytest.raises(MissingInput, match="no ensemble member of role 'score'"):
        ensemble.Ensemble.load(folder / "a")


def test_what_another_process_is_downloading_is_no_member(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    half = tmp_path / ".tmpx1y2"
    half.mkdir()
    shutil.copy(folder / "a" / ensemble.META, half)
    assert [meta.name for meta in ensemble.Ensemble.load(tmp_path).metas] == ["a", "b"]


def test_probabilities_are_each_members_raw_softmax(folder):
    judges = ensemble.Ensemble.load(folder)
    got = judges.probabilities(IMAGES[:9])
    assert got.shape == (9, 2, 5)
    assert got.dtype == np.float32
    for column, name in enumerate("ab"):
        model, _ = ensemble.load_member(folder / name)
        expected = training.predict(model, IMAGES, np.arange(9))
        np.testing.assert_allclose(got[:, column], expected, atol=1e-6)
    floats = torch.from_numpy(IMAGES[:9]).permute(0, 3, 1, 2).float() / 255
    np.testing.assert_allclose(judges.probabilities(floats), got, atol=1e-6)


def test_many_images_are_judged_in_passes_that_fit_a_gpu(folder, monkeypatch):
    assert [pixels.pass_size(px) for px in (32, 64, 128, 256, 512)] == [256, 256, 64, 16, 16]
    whole = ensemble.Ensemble.load(folder).probabilities(IMAGES[:9])
    monkeypatch.setattr(pixels, "pass_size", lambda px: 4)
    judges, seen = ensemble.Ensemble.load(folder), []
    judges.models[0].register_forward_pre_hook(lambda model, inputs: seen.append(len(inputs[0])))
    np.testing.assert_allclose(judges.probabilities(IMAGES[:9]), whole, atol=1e-6)
    assert seen == [4, 4, 1]
    assert judges.probabilities(IMAGES[:0]).shape == (0, 2, 5)


def test_score_is_the_mean_over_members_of_the_intended_grade():
    probabilities = np.zeros((2, 2, 5), np.float32)
    probabilities[0, :, 3] = [0.9, 0.5]
    probabilities[1, :, 1] = [0.2, 0.1]
    np.testing.assert_allclose(ensemble.score(probabilities, 3), [0.7, 0.0])
    np.testing.assert_allclose(ensemble.score(probabilities, np.array([3, 1])), [0.7, 0.15], rtol=1e-6)


def test_leakage_is_an_error_naming_member_and_fold(folder):
    meta = ensemble.load_meta(folder / "a")
    ensemble.check_leakage(meta, [f"DDR/{row}" for row in range(100, 200)], "test")
    held = [name for name in IDS if ensemble.hash_ids([name])[0] in set(meta.calibrated_on)]
    seen = [name for name in IDS if name not in held]
    with pytest.raises(LeakageError, match=r"'a' of fold 2 \(inner fold 0\) was trained on 1 of 2 test photographs"):
        ensemble.check_leakage(meta, [seen[0], "DDR/999"], "test")
    with pytest.raises(LeakageError, match=r"'a' of fold 2 .* was calibrated on 2 of 2 evaluated"):
        ensemble.check_leakage(meta, held[:2])


def test_an_imported_member_cannot_prove_its_innocence(folder):
    meta = dataclasses.replace(ensemble.load_meta(folder / "a"), provenance="imported")
    with pytest.raises(LeakageError, match="paper mode only"):
        ensemble.check_leakage(meta, ["DDR/999"])


def test_members_hold_out_the_same_folds(folder):
    held = [set(ensemble.load_meta(folder / name).calibrated_on) for name in "abc"]
    assert not held[0] & held[1]
    assert not held[1] & held[2]


def test_a_fold_without_a_grade_is_refused():
    grades = np.where(np.arange(40) < 38, np.arange(40) % 3, 3)  # two severe photographs for five folds
    folds = calibration.inner_folds(grades, 5, seed=1)
    member = Member(TINY, inner_fold=next(fold for fold in range(5) if 3 not in grades[folds == fold]))
    with pytest.raises(UserError, match=r"no photograph of grade 3 to calibrate on: lower ensemble\.inner_folds"):
        train_member("m", member, 5, IMAGES, np.arange(40), grades, IDS[:40], DIGESTS[:40], seed=1)
    one = np.where(np.arange(40) < 39, np.arange(40) % 3, 3)  # one: the fold that holds it cannot train it
    member = Member(TINY, inner_fold=int(calibration.inner_folds(one, 5, seed=1)[39]))
    with pytest.raises(UserError, match="no photograph of grade 3 to train on"):
        train_member("m", member, 5, IMAGES, np.arange(40), one, IDS[:40], DIGESTS[:40], seed=1)


def test_unfinished_and_damaged_folders(folder, tmp_path):
    with pytest.raises(MissingInput, match="no grader in"):
        ensemble.load_meta(tmp_path)
    record = json.loads((folder / "a" / "grader.json").read_text())
    (tmp_path / "grader.json").write_text(json.dumps(record))
    with pytest.raises(MissingInput, match="no weights beside"):
        ensemble.load_member(tmp_path)
    (tmp_path / "grader.json").write_text(json.dumps(record | {"colour": "red"}))
    with pytest.raises(DamagedData, match="is no record of a grader"):
        ensemble.load_meta(tmp_path)
    (tmp_path / "grader.json").write_text((folder / "b" / "grader.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((folder / "a" / "model.safetensors").read_bytes())
    with pytest.raises(DamagedData, match="does not hold the weights that its record describes"):
        ensemble.load_member(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((folder / "b" / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(DamagedData, match="no readable safetensors file"):
        ensemble.load_member(tmp_path)
