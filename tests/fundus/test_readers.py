"""Readers on trees in the published layouts, with the traps that those data sets are known for."""

import dataclasses
import re
from pathlib import Path

import gs_server
import pytest
from pyarrow import fs

from fundus.trees import EXPECTED, EXPECTED_REJECTED, PLANTERS, photograph, plant, write
from raydr.cluster.source_files import prepare_rows
from raydr.errors import UserError
from raydr.fundus.readers import ddr, deepdrid, table
from raydr.fundus.readers.registry import READERS, list_source, open_source, read_bytes, read_source, with_role
from raydr.fundus.readers.rows import images_in
from raydr.fundus.readers.text import csv_records, grade_of


def summary(rows):
    return [(r.image_id, r.split, r.patient_id, r.grade, r.gradable, r.stratum) for r in rows]


@pytest.mark.parametrize("name", sorted(PLANTERS))
def test_every_row_and_every_rejection(name: str, tmp_path: Path) -> None:
    root = plant(name, tmp_path / "mine")
    rows, rejected = list_source(name, str(root))
    assert summary(rows) == EXPECTED[name]
    assert [(entry.name, entry.reason) for entry in rejected] == EXPECTED_REJECTED[name]
    for row in rows:
        assert row.num_bytes == (root / row.path).stat().st_size
        assert row.dataset == row.image_id.split("/")[0]
        assert read_bytes(*open_source(str(root)), row.path) == (root / row.path).read_bytes()


def test_every_reader_is_tested() -> None:
    assert set(READERS) == set(PLANTERS) == set(EXPECTED)


def test_root_may_be_the_inner_folder(tmp_path: Path) -> None:
    plant("ddr", tmp_path)
    outer, inner = list_source("ddr", str(tmp_path)), list_source("ddr", str(tmp_path / "DR_grading"))
    assert summary(outer[0]) == summary(inner[0])
    assert inner[0][0].path == "train/007-0004-000.jpg"


def test_relative_and_home_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant("fgadr", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(list_source("fgadr", "data/")[0]) == len(list_source("fgadr", "./data")[0]) == 2
    assert len(list_source("fgadr", "~/data")[0]) == 2


def test_listing_order_changes_nothing() -> None:
    listing = ["DR_grading/train/007-0004-000.jpg", "DR_grading/train/007-0005-000.jpg"]
    labels = {"DR_grading/train.txt": b"007-0004-000.jpg 1\n007-0005-000.jpg 2\n"}
    forward, backward = ddr.read(listing, labels), ddr.read(listing[::-1], labels)
    assert sorted(map(repr, forward[0])) == sorted(map(repr, backward[0]))
    assert [row.grade for row in forward[0]] == [1, 2]


def test_eyepacs_test_labels_make_an_official_test_split(tmp_path: Path) -> None:
    plant("eyepacs", tmp_path)
    write(tmp_path, {"retinopathy_solution.csv": "image,level,Usage\n1_left,3,Public\n"})
    rows = {row.image_id: row for row in list_source("eyepacs", str(tmp_path))[0]}
    assert (rows["EyePACS/1_left"].split, rows["EyePACS/1_left"].grade) == ("test", 3)


def test_deepdrid_takes_the_photographed_eye_not_the_worse_one() -> None:
    listing = ["regular-fundus-training/Images/7/7_l1.jpg"]
    data = b"image_id,left_eye_DR_Level,right_eye_DR_Level,patient_DR_Level\n7_l1,0,4,4\n"
    rows, _ = deepdrid.read(listing, {"regular-fundus-training/regular-fundus-training.csv": data})
    assert rows[0].grade == 0


def test_csv_may_be_given_as_the_file_itself(tmp_path: Path) -> None:
    root = plant("csv", tmp_path / "mine")
    rows, _ = list_source("csv", str(root / "labels.csv"))
    assert summary(rows) == EXPECTED["csv"]


def test_csv_names_without_folder_or_extension() -> None:
    rows, rejected = table.read(["x/A1.JPG", "x/A2.png"], {"t.csv": b"image_id,diagnosis\na1,0\nA2.jpg,4\n"})
    assert [(row.image_id, row.grade) for row in rows] == [("csv/x/A1", 0), ("csv/x/A2", 4)]
    assert rejected == []


def test_csv_split_from_its_name() -> None:
    listing = ["a.jpg", "b.jpg"]
    files = {"train.csv": b"image,grade\na.jpg,1\n", "valid.csv": b"image,grade\nb.jpg,1\n"}
    rows, rejected = table.read(listing, files)
    # Both tables see both files: what the other one lists is no file without label.
    assert [(row.image_id, row.split) for row in rows] == [("csv/a", "train"), ("csv/b", "validation")]
    assert rejected == []


def test_ambiguous_and_repeated_names() -> None:
    listing = ["x/a.jpg", "y/a.jpg", "x/b.jpg", "x/b.png"]
    rows, rejected = table.read(listing, {"t.csv": b"image,grade\na,1\na.jpg,1\nx/b.jpg,2\n"})
    assert [row.path for row in rows] == ["x/b.jpg"]
    assert [entry.name for entry in rejected if entry.reason == "ambiguous name"] == ["a", "a.jpg"]
    listing = ["DR_grading/train/1-1-1.jpg", "DR_grading/test/1-1-1.jpg"]
    rows, rejected = ddr.read(listing, {"DR_grading/train.txt": b"1-1-1.jpg 0", "DR_grading/test.txt": b"1-1-1.jpg 0"})
    assert len(rows) == 1
    assert rejected[0].reason == "repeated image id"


@pytest.mark.parametrize(
    ("role", "splits"),
    [(None, ["train", "test", None]), ("external", ["external"] * 3), ("prior", ["prior", "external", "prior"])],
)
def test_roles_keep_test_photographs_out_of_the_prior(role, splits) -> None:
    listing = ["DR_grading/train/1-1-1.jpg", "DR_grading/test/1-1-2.jpg"]
    rows, _ = ddr.read(listing, {"DR_grading/train.txt": b"1-1-1.jpg 0", "DR_grading/test.txt": b"1-1-2.jpg 0"})
    free, _ = table.read(["c.jpg"], {"t.csv": b"image,grade\nc.jpg,1\n"})
    assert [row.split for row in with_role([*rows, *free], role)] == splits


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", (0, True)), ("4.0", (4, True)), ("5", (None, False)), ("", "label missing")]
    + [(text, "label out of range") for text in ("6", "-1", "2.5", "severe", "nan", "1e0")],
)
def test_grade_of(text: str, expected) -> None:
    if isinstance(expected, tuple):
        assert grade_of(text, ungradable=(5,)) == expected
    else:
        with pytest.raises(ValueError, match=expected):
            grade_of(text, ungradable=(5,))


def test_five_is_ungradable_only_where_the_source_says_so() -> None:
    with pytest.raises(ValueError, match="out of range"):
        grade_of("5")


def test_csv_records_mend_headers_and_short_rows() -> None:
    data = "\ufeffImage name,Retinopathy grade ,,\r\nx, 3\r\n,,\r\n".encode()
    assert csv_records(data, "f.csv") == [{"image name": "x", "retinopathy grade": "3"}]
    with pytest.raises(UserError, match=r"f\.csv has no column 'level'"):
        csv_records(data, "f.csv", ("level",))


def test_hidden_files_are_no_images() -> None:
    assert images_in(["a/x.JPEG", "a/._x.jpg", "__MACOSX/a/x.jpg", "a/Thumbs.db", "a/b/y.png"], "A") == ["a/x.JPEG"]


@pytest.mark.parametrize(
    ("name", "path", "sentence"),
    [
        ("kaggle", "", "unknown source 'kaggle': choose one of ddr"),
        ("ddr", "nowhere", "does not exist: give the folder that holds DR_grading"),
        ("ddr", "", "no DDR photographs under .* the layout is DR_grading"),
    ],
)
def test_users_mistakes_are_one_sentence(name: str, path: str, sentence: str, tmp_path: Path) -> None:
    write(tmp_path, {"holiday.jpg": photograph(0)})
    with pytest.raises(UserError, match=sentence):
        list_source(name, str(tmp_path / path))
    with pytest.raises(UserError, match="give a local folder, s3://bucket/folder or gs://"):
        open_source("ftp://host/folder")


def test_any_pyarrow_file_system(tmp_path: Path) -> None:
    """Readers see paths relative to the root, whatever the file system puts before them."""
    plant("idrid", tmp_path / "bucket" / "sets")
    rows, _ = read_source("idrid", fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "bucket/sets")
    assert summary(rows) == EXPECTED["idrid"]


def test_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blanks in keys (IDRiD's folders) survive the way through an s3:// address."""
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            monkeypatch.setenv(name, value)
        root = plant("idrid", tmp_path)
        store = fs.S3FileSystem(endpoint_override=f"{host}:{port}", scheme="http", allow_bucket_creation=True)
        store.create_dir("photos")
        fs.copy_files(str(root), "photos/sets", fs.LocalFileSystem(), store)
        rows, rejected = list_source("idrid", "s3://photos/sets/")
        assert summary(rows) == EXPECTED["idrid"]
        assert rejected == []
        data = read_bytes(*open_source("s3://photos/sets"), rows[0].path)
        assert data == (root / rows[0].path).read_bytes()
    finally:
        server.stop()


def test_gs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same from Google's storage: listed, labels read, and a photograph prepared as a worker does it."""
    root = plant("idrid", tmp_path / "photos/sets")
    with gs_server.serve(tmp_path) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        rows, rejected = list_source("idrid", "gs://photos/sets/")
        assert summary(rows) == EXPECTED["idrid"]
        assert rejected == []
        data = read_bytes(*open_source("gs://photos/sets"), rows[0].path)
        assert data == (root / rows[0].path).read_bytes()
        ours, theirs = (prepare_rows(rows, base, 64, "circle") for base in ("gs://photos/sets", str(root)))
        assert ours == theirs
        assert len(ours[0]) == 3
        with pytest.raises(UserError, match="does not exist: give the folder"):
            list_source("idrid", "gs://photos/elsewhere")
        with pytest.raises(UserError, match=r"gone\.jpg has gone from photos/sets"):
            prepare_rows([dataclasses.replace(rows[0], path="gone.jpg")], "gs://photos/sets", 64, "circle")


def test_the_reader_in_the_readme_does_what_is_said_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text().split("## Adding a reader for a data set")[1]
    code: dict = {}
    exec(re.search(r"^```python\n(.*?)^```", text, re.M | re.S)[1], code)
    monkeypatch.setitem(READERS, "clinic", code["READER"])
    files = {f"photos/{name}": photograph(1) for name in ("7_left.JPG", "7_right.jpg", "8_left.png", "9_left.jpg")}
    write(tmp_path, files | {"grades.csv": "file,dr\n7_left.jpg,0\n7_right,9\n8_left.png,4\n10_left.jpg,1\n"})
    rows, rejected = list_source("clinic", str(tmp_path))
    assert summary(rows) == [
        ("Clinic/7_left", "train", "Clinic/7", 0, True, None),
        ("Clinic/7_right", "train", "Clinic/7", None, False, None),
        ("Clinic/8_left", "train", "Clinic/8", 4, True, None),
    ]
    assert [(entry.name, entry.reason) for entry in rejected] == [
        ("10_left.jpg", "label without file"),
        ("photos/9_left.jpg", "file without label"),
    ]


def test_only_a_csv_may_be_named_by_its_file(tmp_path):
    """Else a reader was handed a label file of another data set: found by fuzzing, a KeyError."""
    (tmp_path / "trainLabels.csv").write_text("image_path,grade,patient\n")
    with pytest.raises(UserError, match=r"trainLabels\.csv is a file: give the folder"):
        list_source("ddr", str(tmp_path / "trainLabels.csv"))


def test_what_is_no_csv_is_one_sentence(tmp_path):
    (tmp_path / "labels.csv").write_text("path,grade\n" + "x" * 140_000 + ",1\n")
    with pytest.raises(UserError, match=r"labels\.csv is no CSV \(field larger"):
        list_source("csv", str(tmp_path))


@pytest.mark.parametrize("text", ["9" * 400, "1" * 10, "1e400", "٣٣"])
def test_endless_numbers_are_no_grade(text):
    with pytest.raises(ValueError, match="label out of range"):
        grade_of(text)
