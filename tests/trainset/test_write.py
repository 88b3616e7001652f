import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from raydr import cli, images, record, shards
from raydr.errors import DamagedData, UserError
from raydr.schema import TRAINING
from raydr.storage import Run
from raydr.trainset import write
from raydr.trainset.choose import Request, choose

from .tables import picture, spoil_images, write_real, write_samples

PLAIN1 = "plain-g1-a"
REQUEST = Request((0.7, 0.9), 1.0, (1, 3))


def filled(run):
    write_real(run, (10, 2, 8, 1, 3))
    write_real(run, (2,) * 5, "test")
    write_samples(run, PLAIN1, 1, [0.8, 0.9, 0.1, 0.75, 0.8, 0.8], nearest_distance=[1, 0.1, 1, 1, 1, 1])
    write_samples(run, "plain-g3-b", 3, [0.8, 0.1, 0.75, 0.8])
    run.replace_json(f"generators/{PLAIN1}/generator.json", {"base": "phantom", "dataset": "DDR"})
    return run


@pytest.fixture
def run(tmp_path):
    return filled(Run(tmp_path / "out"))


def export(run, to, kind="parquet"):
    choice = choose(run, REQUEST, None)
    return choice, write.write(run, choice, Run(to), kind, {PLAIN1: "DDR"})


def test_parquet(run, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "FILE_ROWS", 20)
    choice, written = export(run, tmp_path / "set")
    files = sorted((tmp_path / "set").glob("*.parquet"))
    assert [path.name for path in files] == ["train-00000.parquet", "train-00001.parquet"] == sorted(written.files)
    assert [pq.read_metadata(path).num_rows for path in files] == [20, 11]
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files} == written.files
    assert written.ensemble_ids == ("e-1",)
    table = pq.read_table(files[0]).schema.remove_metadata()
    assert table == TRAINING
    frame = pd.concat([pd.read_parquet(path) for path in files])
    photographs, samples = frame[~frame["synthetic"]], frame[frame["synthetic"]]
    assert sorted(photographs["image_id"]) == sorted(choice.real["image_id"].to_pylist())
    assert photographs["grade"].value_counts().to_dict() == {0: 10, 1: 2, 2: 8, 3: 1, 4: 3}
    assert photographs["generator_id"].isna().all()
    assert samples["image_id"].tolist() == [
        *(f"{PLAIN1}/g1/{k}" for k in (0, 3, 4, 5)),
        *(f"plain-g3-b/g3/{k}" for k in (0, 2, 3)),
    ]
    assert samples["score"].tolist() == pytest.approx([0.8, 0.75, 0.8, 0.8, 0.8, 0.75, 0.8])
    assert samples["patient_id"].isna().all()
    assert set(samples["dataset"][:4]) == {"DDR"}
    for data, digest in zip(frame["image"], frame["sha256"], strict=True):
        assert hashlib.sha256(data).hexdigest() == digest
    assert samples["image"].iloc[1] == picture(3)


def test_hugging_face_datasets_shows_pictures(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets", reason="pip install 'raydr[test]' brings it")
    export(run, tmp_path / "set")
    files = str(tmp_path / "set" / "*.parquet")
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.num_rows == 31
    row = loaded.cast_column("image", datasets.Image())[loaded["image_id"].index(f"{PLAIN1}/g1/3")]
    assert np.array_equal(np.asarray(row["image"]), images.decode(picture(3)))
    assert (row["grade"], row["synthetic"]) == (1, True)


def test_folder(run, tmp_path):
    choice, written = export(run, tmp_path / "set", "folder")
    with open(tmp_path / "set" / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == choice.real.num_rows + choice.synthetic.num_rows == len(written.files) - 1
    for row in rows:
        path = tmp_path / "set" / row["file_name"]
        assert path.parent.name == row["grade"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == row["sha256"] == written.files[row["file_name"]]
    (row,) = (row for row in rows if row["image_id"] == f"{PLAIN1}/g1/3")
    assert (row["synthetic"], row["generator_id"], row["score"]) == ("True", PLAIN1, "0.75")
    assert row["file_name"] == f"images/1/{PLAIN1}-g1-3.webp"


def test_names_stay_inside_the_folder_and_apart(tmp_path):
    """Ids come from label files of others."""
    run = Run(tmp_path / "out")
    write_samples(run, PLAIN1, 1, [0.8] * 4)
    write_real(run, (4, 1, 1, 1, 1))
    choice = choose(run, REQUEST, None)
    names = ["../../../etc/x", "..-..-..-etc-x", "ETC-X", "a/b", "a b", "//", "\u00e9\u00e8.", "a" * 300]
    rows = ({"image_id": name, "grade": 0, "image": picture(k)} for k, name in enumerate(names))
    keys = [key for key, _ in write._folder(iter(rows))][:-1]
    assert len({key.lower() for key in keys}) == len(names)
    for key in keys:
        assert Path("/elsewhere", key).resolve().is_relative_to("/elsewhere/images/0")
        Run(tmp_path / "set").create(key, b"x")  # refuses what is no plain name
    assert choice.synthetic.num_rows == 3


def test_what_is_there_is_never_written_over(run, tmp_path):
    _, written = export(run, tmp_path / "set")
    with pytest.raises(UserError, match=r"is not empty \(train-00000.parquet\): name another --to"):
        export(run, tmp_path / "set")
    write.finish(Run(tmp_path / "set"), {"a": 1}, "text")
    with pytest.raises(UserError, match="holds a training set already"):
        export(run, tmp_path / "set")
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["card.json", "card.md", *written.files]


def test_damaged_images_are_noticed(run, tmp_path):
    spoil_images(run, f"synthetic/{PLAIN1}")
    with pytest.raises(DamagedData, match=r"plain-g1-a/g1-000000\.parquet .* run `raydr repair"):
        export(run, tmp_path / "set")


def test_an_image_that_is_not_its_row_s(tmp_path):
    run = Run(tmp_path / "out")
    write_real(run, (4, 1, 1, 1, 1))
    write_samples(run, PLAIN1, 1, [0.8] * 4, sha256=["0" * 64] * 4)
    with pytest.raises(DamagedData, match="holds another image than its row plain-g1-a/g1/0"):
        export(run, tmp_path / "set")


# The command


@pytest.fixture
def whole(run):
    """`run` as the command line wants it, with its recipe and the card of its sources."""
    import dataclasses

    from raydr import recipes

    recipe = dataclasses.asdict(recipes.debug())
    run.replace_json("recipe.json", {"recipe": recipe, "versions": {"raydr": "0.1.0"}, "revision": "abc"})
    sources = [
        {
            "dataset": "DDR",
            "reader": "ddr",
            "role": None,
            "num_listed": 24,
            "terms": "research | only",
            "path": "/secret",
        }
    ]
    run.replace_json("report/dataset-card.json", {"sources": sources})
    assert record.stored_recipe(run) is not None
    return run


def select(whole, *options):
    return cli.main(["select", whole.url, "--band", "0.7", "0.9", "--grades", "1", "3", *map(str, options)])


def test_the_command_and_its_cards(whole, tmp_path, capsys):
    assert select(whole, "--to", tmp_path / "set") == 0
    told = capsys.readouterr().out
    assert "31 rows, 7 of them synthetic" in told
    assert "Grade 1 (mild): 4 of 8 wanted images are there, 4 are missing." in told
    made = json.loads((tmp_path / "set" / "card.json").read_text())
    assert made["selection"] == {
        "band": [0.7, 0.9],
        "ratio": 1.0,
        "grades": [1, 3],
        "kind": "plain",
        "scores_by": ["e-1"],
    }
    mild = made["counts"][1]
    assert [mild[name] for name in ("num_wanted", "num_in_band", "num_memorised", "num_added", "shortage")] == [
        8,
        5,
        1,
        4,
        4,
    ]
    assert made["num_memorised_left_out"] == 1
    assert [each["generator_id"] for each in made["generators"]] == [PLAIN1, "plain-g3-b"]
    assert [each["memorised_below"] for each in made["generators"]] == [0.5, 0.5]
    assert made["generators"][1]["base_terms"].startswith("unknown")  # it has no record
    assert made["sources"][0]["terms"] == "research | only"
    assert made["run"]["recipe"] == "debug"
    assert made["run"]["revision"] == "abc"
    for name, digest in made["files"].items():
        assert hashlib.sha256((tmp_path / "set" / name).read_bytes()).hexdigest() == digest
    text = (tmp_path / "set" / "card.md").read_text()
    assert "research \\| only" in text
    assert "4 of 8 wanted images" in text
    assert "Phantom data" in text
    assert "/secret" not in text + json.dumps(made)
    assert [path.name for path in (tmp_path / "set").glob(".*")] == []


def test_without_a_place_it_only_says(whole, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    assert select(whole, "--format", "folder") == 0
    assert "nothing written" in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--band", "0.95", "0.99"), "None of 10 plain images"),
        (("--kind", "ecc"), "no images of --kind ecc"),
        (("--ratio", "-1"), "--ratio must be above 0"),
        (("--ensemble", "e-9"), "run `raydr rescore` first"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(whole, tmp_path, capsys, options, told):
    assert select(whole, "--to", tmp_path / "set", *options) == 2
    assert told in capsys.readouterr().out
    assert not (tmp_path / "set").exists()


def test_it_needs_neither_ray_nor_torch(whole, tmp_path):
    import subprocess
    import sys

    code = (
        "import sys; from raydr import cli; assert cli.main(sys.argv[1:]) == 0;"
        "heavy = {'ray', 'torch', 'sklearn'} & set(sys.modules); assert not heavy, heavy"
    )
    arguments = ["select", whole.url, "--band", "0.7", "0.9", "--to", str(tmp_path / "set"), "--format", "folder"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_run_of_replicates_must_name_one(tmp_path, capsys):
    import dataclasses

    from raydr import recipes

    recipe = dataclasses.asdict(dataclasses.replace(recipes.debug(), num_replicates=2))
    Run(tmp_path).replace_json("recipe.json", {"recipe": recipe, "versions": {}, "revision": None})
    assert cli.main(["select", str(tmp_path)]) == 2
    assert "replicate-0" in capsys.readouterr().out


def test_in_a_bucket(tmp_path):
    from s3_server import serve

    with serve():
        run, to = filled(Run("s3://bucket/out")), Run("s3://bucket/set")
        choice = choose(run, REQUEST, None)
        written = write.write(run, choice, to, "parquet", {})
        write.finish(to, {"a": 1}, "text")
        assert [key for key, _ in to.list()] == ["card.json", "card.md", *written.files]
        here = choose(filled(Run(tmp_path)), REQUEST, None)
        assert here.synthetic.equals(choice.synthetic)
        assert here.real["image_id"].equals(choice.real["image_id"])
        assert shards.commits(run).keys() == shards.commits(Run(tmp_path)).keys()
