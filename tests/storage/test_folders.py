"""Whole folders in a run: uploaded once, never read in part, never written over somebody's own."""

from pathlib import Path

import pytest

from raydr.errors import DamagedData, MissingInput, UserError
from raydr.storage import Run

from .processes import start


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    folder = tmp_path / "weights"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "model.safetensors").write_bytes(b"w" * 50_000)
    (folder / "generator.json").write_text("{}")
    (folder / ".cache").write_text("not part of it")
    return folder


def test_a_folder_comes_back_as_it_was(run: Run, weights: Path, tmp_path: Path) -> None:
    assert run.upload(weights, "generators/g1")
    assert not run.upload(weights, "generators/g1")
    assert run.uploaded("generators/g1")
    assert run.folder("generators/g1", tmp_path / "cache") == run.path("generators/g1")
    copy = run.download("generators/g1", tmp_path / "copy")
    assert (copy / "unet" / "model.safetensors").read_bytes() == b"w" * 50_000
    names = {path.name for path in copy.rglob("*") if path.is_file()}
    assert names == {"model.safetensors", "generator.json", "_done.json"}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    run.replace("generators/g1/generator.json", b"changed")
    assert run.download("generators/g1", tmp_path / "copy") == copy  # there already


def test_a_half_upload_is_never_read(run: Run, weights: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from raydr.storage import Run\n"
        "Run(sys.argv[1]).upload(Path(sys.argv[2]), 'g')"
    )
    assert start(code, run.url, str(weights), failpoint="before_commit:exit").wait() == 137
    assert run.exists("g/generator.json")
    assert not run.uploaded("g")
    for read in (lambda: run.download("g", tmp_path / "copy"), lambda: run.folder("g", tmp_path)):
        with pytest.raises(MissingInput, match=r"g.* in .*out"):
            read()
    assert not (tmp_path / "copy").exists()
    (weights / "generator.json").write_text('{"again": 1}')
    assert run.upload(weights, "g")
    assert (run.download("g", tmp_path / "copy") / "generator.json").read_text() == '{"again": 1}'


def test_changed_weights_and_hostile_marks_are_refused(run: Run, weights: Path, tmp_path: Path) -> None:
    run.upload(weights, "g")
    run.replace("g/unet/model.safetensors", b"v" * 50_000)
    with pytest.raises(DamagedData, match=r"g/unet/model\.safetensors"):
        run.download("g", tmp_path / "a" / "copy")
    assert list((tmp_path / "a").iterdir()) == []
    mark = run.read_json("g/_done.json")
    mark["files"]["../../evil"] = mark["files"]["generator.json"]
    run.replace_json("g/_done.json", mark)
    with pytest.raises(UserError, match="no valid name"):
        run.download("g", tmp_path / "b" / "copy")
    assert not (tmp_path / "b").exists()


def test_a_download_does_not_take_over_a_foreign_folder(run: Run, weights: Path, tmp_path: Path) -> None:
    run.upload(weights, "g")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="is in the way"):
        run.download("g", tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
