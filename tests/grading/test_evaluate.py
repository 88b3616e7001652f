import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from grading.blobs import blobs
from raydr import metrics, schema
from raydr.config import Grader
from raydr.errors import MissingInput
from raydr.grading import evaluate, training
from raydr.grading.ensemble import Meta, hash_ids, save_member

TINY = Grader(backbone="test_resnet", px=32, steps=3, batch=10)
IMAGES, GRADES = blobs(60)


@pytest.fixture(scope="module")
def trained():
    return training.train(TINY, IMAGES, np.arange(60), GRADES, seed=1, num_threads=1)


@pytest.fixture(scope="module")
def source(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("grader")
    meta = Meta(
        "trial", TINY, 1, role="trial", data_fingerprint="abc", trained_on=hash_ids(["DDR/1", "DDR/2"]),
        temperature=2.0, validation={"balanced_accuracy": 0.8125},
    )  # fmt: skip
    return save_member(folder, trained.model, meta)


def test_predictions_of_a_table(trained):
    rows = np.arange(10, 40)
    ids = [f"messidor2/{row}" for row in rows]
    table, values = evaluate.evaluate_grader(
        trained.model, IMAGES, rows, ids, GRADES[rows], trial_id="t1", split="external"
    )
    assert table.schema.equals(schema.PREDICTIONS)
    assert table["image_id"].to_pylist() == ids
    assert set(table["split"].to_pylist()) == {"external"}
    probabilities = training.predict(trained.model, IMAGES, rows)
    np.testing.assert_array_equal(np.array(table["probabilities"].to_pylist(), np.float32), probabilities)
    predictions = np.array(table["prediction"].to_pylist())
    assert (predictions == probabilities.argmax(1)).all()
    matrix = metrics.confusion(GRADES[rows], predictions)
    assert values["balanced_accuracy"] == metrics.balanced_accuracy(matrix)


def test_an_export_is_usable_in_three_lines(source, trained, tmp_path):
    folder = evaluate.export_grader(source, tmp_path / "out", "Test grader", notes="Made by a test.", phantom=True)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "grader.json", "model.safetensors"]
    Image.fromarray(IMAGES[7]).save(tmp_path / "photograph.png")
    code = (
        "from raydr.grading.evaluate import load_grader\n"
        f"grader = load_grader({str(folder)!r})\n"
        f"probabilities = grader({str(tmp_path / 'photograph.png')!r})\n"
        "import sys; assert 'ray' not in sys.modules; print(*probabilities)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    np.testing.assert_allclose(np.array(out.split(), float), training.predict(trained.model, IMAGES, [7])[0], atol=1e-6)


def test_the_model_card(source, tmp_path):
    card = (evaluate.export_grader(source, tmp_path, "Test grader", "Made by a test.", True) / "README.md").read_text()
    for words in (
        "# Test grader",
        "phantoms",
        "load_grader",
        "32 px",
        "0.8125",
        "2 photographs",
        "`abc`",
        "Made by a test.",
    ):
        assert words in card
    assert "0.426" in card
    assert "phantoms" not in (evaluate.export_grader(source, tmp_path, "T") / "README.md").read_text()


def test_photographs_of_any_kind(source):
    grader = evaluate.load_grader(source)
    several = grader([IMAGES[0], IMAGES[1].repeat(2, axis=0).repeat(2, axis=1)])
    assert several.shape == (2, 5)
    np.testing.assert_allclose(grader(IMAGES[0]), several[0], atol=1e-6)
    tempered = grader(IMAGES[0], calibrated=True)
    expected = np.sqrt(several[0]) / np.sqrt(several[0]).sum()  # temperature 2
    np.testing.assert_allclose(tempered, expected, rtol=1e-4)


def test_no_grader_there(tmp_path):
    with pytest.raises(MissingInput, match="no grader in"):
        evaluate.load_grader(tmp_path)
