"""Pictures for a README: small, labelled, of images that nobody chose."""

import io
import shutil

import browser
import fake_run
import numpy as np
import pytest
from PIL import Image

from raydr import cli
from raydr.errors import MissingInput, UserError
from raydr.report import data, page, showcase
from raydr.storage import Run


def cell(picture, line_top, column):
    x = showcase.LEFT + column * (showcase.CELL + showcase.GAP)
    return np.asarray(picture)[line_top : line_top + showcase.CELL, x : x + showcase.CELL].astype(float)


def test_grid_shows_photographs_above_the_first_samples(single):
    run, _ = single
    (part,) = data.load(run, 1)
    picture = showcase.grid(part, phantom=True)
    plain, scored = showcase.CELL + showcase.GAP, showcase.CELL + showcase.LINE
    assert picture.size == (showcase.LEFT + 8 * plain, 2 * (plain + 2 * scored) + showcase.GAP)
    ids = [f"DDR/train-1-{k:04d}" for k in range(6)]
    shown = showcase._pixels(run, "real", showcase.schema.REAL, "image_id", ids)
    wanted = Image.fromarray(shown[3]).resize((showcase.CELL,) * 2, Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(cell(picture, showcase.GAP, 3), np.asarray(wanted))
    # Six photographs of grade 1: the seventh place is empty; sample 5 is blank, so 6 stands in its place.
    assert (cell(picture, showcase.GAP, 6) == 255).all()
    names = [name for name in part.samples["sample_id"].to_pylist() if name.startswith("plain-g1-0/")]
    usable = dict(zip(part.samples["sample_id"].to_pylist(), part.samples["usable"].to_pylist(), strict=True))
    first = [name for name in names if usable[name]][:8]
    assert "plain-g1-0/g1/5" not in first
    made = showcase._pixels(run, "synthetic", showcase.schema.SYNTHETIC, "sample_id", first)
    wanted = Image.fromarray(made[7]).resize((showcase.CELL,) * 2, Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(cell(picture, showcase.GAP + plain, 7), np.asarray(wanted))


def test_pictures_stay_small():
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 255, (150, 200, 3), dtype=np.uint8))
    data_ = showcase.small_png(noise, most=8000)
    assert len(data_) <= 8000
    assert Image.open(io.BytesIO(data_)).width < 200
    flat = Image.new("RGB", (200, 150), "#a63d14")
    assert Image.open(io.BytesIO(showcase.small_png(flat))).size == (200, 150)


def test_users_mistakes(tmp_path, monkeypatch):
    with pytest.raises(MissingInput, match="raydr report"):
        showcase.write(Run(str(tmp_path / "none")), tmp_path)
    run = fake_run.write_run(tmp_path / "run", num_seeds=1, num_test=4, with_synthetic=False)
    page.write(run, fake_run.recipe(num_seeds=1))
    with pytest.raises(MissingInput, match="raydr synthesize"):
        showcase.write(run, tmp_path)
    monkeypatch.setattr(showcase.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="A picture of the report takes one of chromium"):
        showcase.screen(b"<p>")


@pytest.mark.slow
@pytest.mark.skipif(browser.CHROMIUM is None, reason="needs Chromium")
def test_report_with_pictures(single, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(str(single[0].local), out)
    assert cli.main(["report", str(out), "--pictures", str(tmp_path / "pictures")]) == 0
    shown = Image.open(tmp_path / "pictures" / "report.png").convert("RGB")
    assert shown.size == showcase.WINDOW
    # The band that says "phantom data" is there: its colour, from one side to the other.
    assert (np.asarray(shown)[100, [3, -3]] == (251, 238, 230)).all()
    for name in ("report.png", "synthetic.png"):
        assert 10_000 < (tmp_path / "pictures" / name).stat().st_size <= showcase.MAX_BYTES
