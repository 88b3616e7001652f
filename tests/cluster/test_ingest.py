"""Real data sets into `real`: trees in the published layouts, through the pipeline's entry, on one small cluster."""

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from fundus.trees import EXPECTED, EXPECTED_REJECTED, drawing, photograph, plant, write
from ingesting import add, few, rows_of, small_cluster
from PIL import Image
from s3_server import serve

from raydr import cli, schema, shards
from raydr.cluster import pipeline, source_record
from raydr.cluster.pictures import PX, Pictures, columns_of
from raydr.config import Recipe
from raydr.errors import IdentityMismatch, UserError
from raydr.fundus.circle import find_circle
from raydr.fundus.preprocess import prepare
from raydr.images import decode
from raydr.sources import Ingest, PhantomSet
from raydr.storage import Run

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def bucket():
    """A bucket on loopback; before Ray, so that its workers know the way."""
    with serve("bucket"):
        yield "s3://bucket"


@pytest.fixture(scope="module", autouse=True)
def cluster(bucket, ray_temp):
    with small_cluster(ray_temp):
        yield


def files_of(folder: Path) -> dict[str, bytes]:
    """Everything that a second, idle ingest must leave alone; times and costs aside."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.parts[len(folder.parts)] not in ("logs", "_lock")
    }


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """All nine layouts in one table, with every trap that the trees hold."""
    root = tmp_path_factory.mktemp("sets")
    out = root / "out"
    summaries = {}
    for name in sorted(EXPECTED):
        summaries[name] = add(out, name, plant(name, root / name / "mine"), dataset="csv" if name == "csv" else None)
    return root, out, summaries


def test_nine_data_sets_in_one_table(everything) -> None:
    _, out, summaries = everything
    rows = rows_of(out)
    by_id = {row["image_id"]: row for row in rows}
    assert len(by_id) == len(rows)
    expected = {entry[0].replace("mine/", "csv/") if name == "csv" else entry[0]: entry for name in EXPECTED
                for entry in EXPECTED[name]}  # fmt: skip
    del expected["EyePACS/492_right"]  # listed, and truncated
    assert set(by_id) == set(expected)
    for image_id, (_, split, patient, grade, gradable, stratum) in expected.items():
        row = by_id[image_id]
        assert (row["grade"], row["gradable"], row["stratum"]) == (grade, gradable, stratum), image_id
        assert row["patient_id"] == (patient.replace("mine/", "csv/") if patient and image_id[:3] == "csv" else patient)
        assert row["split"] == (split or row["split"])
        assert row["split"] in ("train", "validation", "test", "prior", "external")
        assert (row["source_width"], row["source_height"]) == (160, 120)
        assert decode(row["image"]).shape == (64, 64, 3)
    assert shards.completed(Run(str(out)), "real")["rows"] == len(rows)
    assert summaries["idrid"]["photographs"] == sum(len(EXPECTED[n]) for n in EXPECTED if n <= "idrid") - 1
    assert summaries["idrid"]["source"]["splits"] == {"train": 2, "test": 1}


def test_what_is_set_aside_is_noted_with_its_reason(everything) -> None:
    _, out, summaries = everything
    notes = {(note["key"], note["reason"]) for note in shards.quarantined(Run(str(out)), "real")}
    names = {"ddr": "DDR", "eyepacs": "EyePACS", "aptos": "APTOS", "folder": "mine", "csv": "csv"}
    expected = {(f"{names[name]}/{key}", reason) for name in names for key, reason in EXPECTED_REJECTED[name]}
    assert notes == expected | {("EyePACS/train/492_right.jpeg", "truncated")}
    assert summaries["eyepacs"]["source"]["set_aside"] == {
        "label missing": 1, "label without file": 1, "truncated": 1
    }  # fmt: skip


def test_pixels_are_those_of_the_kernel(everything) -> None:
    root, out, _ = everything
    row = next(row for row in rows_of(out) if row["image_id"] == "FGADR/0001_3")
    data = (root / "fgadr/mine/Seg-set/Original_Images/0001_3.png").read_bytes()
    np.testing.assert_array_equal(decode(row["image"]), prepare(data, 64).pixels)


def test_the_card_names_every_source_and_every_reason(everything) -> None:
    _, out, _ = everything
    card = json.loads((out / "report" / "dataset-card.json").read_text())
    assert {source["dataset"] for source in card["sources"]} == {
        "DDR", "EyePACS", "APTOS", "IDRiD", "Messidor-2", "DeepDRiD", "FGADR", "mine", "csv"
    }  # fmt: skip
    assert card["num_photographs"] == len(rows_of(out))
    assert card["num_dropped"] == len(shards.quarantined(Run(str(out)), "real"))
    assert all(source["terms"] for source in card["sources"])
    assert "| truncated | 1 |" in (out / "report" / "dataset-card.md").read_text()


def test_nothing_is_left_of_the_first_pass(everything) -> None:
    _, out, _ = everything
    assert not [key for key, _ in Run(str(out)).list() if "staging" in key or "listing" in key]
    assert not list(out.glob("staging/*"))
    assert shards.verify(Run(str(out))) == []


def test_the_same_again_adds_nothing(everything) -> None:
    root, out, _ = everything
    before = files_of(out)
    again = add(out, "deepdrid", root / "deepdrid/mine")
    assert again["source"]["added"] == 0
    assert again["source"]["kept"] == 4
    assert files_of(out) == before


def test_a_changed_source_is_refused_with_the_difference(everything, tmp_path) -> None:
    root, out, _ = everything
    before = files_of(out)
    tree = shutil.copytree(root / "deepdrid/mine", tmp_path / "deepdrid")
    labels = tree / "regular_fundus_images/regular-fundus-training/regular-fundus-training.csv"
    photo = tree / "regular_fundus_images/regular-fundus-training/Images/1/1_r1.jpg"

    def refused(pattern: str) -> None:
        with pytest.raises(IdentityMismatch, match=pattern):
            add(out, "deepdrid", tree)
        assert files_of(out) == before

    text = labels.read_text()
    labels.write_text(text.replace("1_l1.jpg,1,1,", "1_l1.jpg,1,4,"))
    refused(r"1 changed \(first DeepDRiD/1_l1: grade 1 -> 4\)")
    labels.write_text(text)
    data = photo.read_bytes()
    photo.write_bytes(data[:-40] + bytes(40))  # as many bytes as before
    refused(r"1 with other content \(first DeepDRiD/1_r1\)")
    photo.unlink()
    refused(r"1 removed \(first DeepDRiD/1_r1\), 0 -> 1 entries without a file")
    photo.write_bytes(data)
    assert add(out, "deepdrid", tree)["source"]["added"] == 0  # another place, the same photographs


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({"role": "external"}, "DeepDRiD was ingested with role None and now external is asked for"),
        ({"split_seed": 77}, "DeepDRiD was ingested with split_seed = 1 and now 77 is asked for"),
        ({"drop_duplicates": True}, "with drop_duplicates = False and now True"),
    ],
)
def test_another_request_is_refused_with_both_values(everything, request_, sentence) -> None:
    root, out, _ = everything
    with pytest.raises(IdentityMismatch, match=sentence):
        add(out, "deepdrid", root / "deepdrid/mine", **request_)


def test_a_csv_may_be_named_itself(tmp_path) -> None:
    root = plant("csv", tmp_path / "mine")
    assert add(tmp_path / "out", "csv", root / "labels.csv")["source"]["kept"] == 2


def test_folds_by_seed_and_from_lists(tmp_path) -> None:
    tree = few(tmp_path / "mine")
    add(tmp_path / "drawn", "folder", tree, num_folds=2, per_grade=1)
    rows = rows_of(tmp_path / "drawn")
    for fold in (0, 1):
        assert sorted(row["grade"] for row in rows if row["fold"] == fold) == [0, 1, 2, 3, 4]
    flat = write(tmp_path / "flat", {f"{g}{k}.png": photograph(g * 4 + k, "PNG") for g in range(5) for k in range(2)})
    write(flat, {"train.csv": "image,grade\n" + "".join(f"{g}{k}.png,{g}\n" for g in range(5) for k in range(2))})
    write(tmp_path / "lists", {"fold1_val.txt": "21.png 2\n", "fold0_val.txt": "40.png 4\n11.png 1\n"})
    add(tmp_path / "listed", "csv", flat, folds=str(tmp_path / "lists"))
    folds = {row["image_id"]: row["fold"] for row in rows_of(tmp_path / "listed")}
    assert {k: v for k, v in folds.items() if v is not None} == {"flat/21": 1, "flat/40": 0, "flat/11": 0}
    write(tmp_path / "lists", {"fold1_val.txt": "21.png 3\n"})
    with pytest.raises(UserError, match="says grade 3 for flat/21, the data set says 2"):
        add(tmp_path / "other", "csv", flat, folds=str(tmp_path / "lists"))


def copy_of(seed: int, quality: int = 70, size: tuple[int, int] = (480, 400), turn: int = 0) -> bytes:
    buffer = io.BytesIO()
    drawing(seed, width=size[0], height=size[1]).rotate(turn).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def test_duplicates_across_data_sets_are_found_followed_and_dropped(tmp_path, capsys) -> None:
    official = write(tmp_path / "official", {f"test/{k % 5}/{k}.jpg": copy_of(k, 95) for k in range(6)})
    # 3 and 4 are pictures of the official test set under other names; 100 and 101 are one picture.
    copies = {"labels.csv": "image,grade\na.jpg,3\nb.jpg,4\nc.jpg,0\nd.jpg,0\ne.jpg,1\n", "a.jpg": copy_of(3)}
    copies |= {"b.jpg": copy_of(4, turn=180), "c.jpg": copy_of(100), "d.jpg": copy_of(100, 50), "e.jpg": copy_of(102)}
    free = write(tmp_path / "free", copies)
    out = tmp_path / "out"
    add(out, "folder", official)
    about = add(out, "csv", free)["source"]
    assert (about["duplicates"], about["duplicates_of_other_data_sets"], about["leaks"]) == (3, 2, 0)
    split = {row["image_id"]: row["split"] for row in rows_of(out)}
    assert split["free/a"] == split["free/b"] == "test"
    assert split["free/c"] == split["free/d"]
    assert cli.main(["audit", str(out), "--strict"]) == 0
    audit = json.loads((out / "report/audit.json").read_text())
    assert audit["counts"]["across data sets"] == 2
    assert "free/a" in (out / "report/audit.html").read_text()

    # As training photographs of their own folder layout they leak, and --drop-duplicates mends it.
    train = write(tmp_path / "train", {"train/3/a.jpg": copy_of(3), "train/1/e.jpg": copy_of(102)})
    leaky, clean = tmp_path / "leaky", tmp_path / "clean"
    for place, drop in ((leaky, False), (clean, True)):
        add(place, "folder", official)
        capsys.readouterr()
        about = add(place, "folder", train, drop_duplicates=drop)["source"]
        said = " ".join(capsys.readouterr().out.split())
        assert about["leaks"] == (0 if drop else 1)
        assert ("stand on both sides of a split" in said) is not drop
    assert cli.main(["audit", str(leaky), "--strict"]) == 1
    assert cli.main(["audit", str(leaky)]) == 0
    assert cli.main(["audit", str(clean), "--strict"]) == 0
    kept = {row["image_id"] for row in rows_of(clean)}
    assert "train/train/3/a" not in kept
    assert {"train/train/1/e", "official/test/3/3"} <= kept
    note = shards.quarantined(Run(str(clean)), "real")[0]
    assert (note["key"], note["reason"]) == ("train/train/3/a.jpg", "duplicate")
    assert "official/test/3/3" in note["detail"]


def test_a_real_photograph_through_the_whole_ingest(tmp_path) -> None:
    """scikit-image's eye as a camera would have saved it: in a wide black frame, off its centre, on its side."""
    retina = skimage.data.retina()
    frame = np.zeros((1600, 2400, 3), np.uint8)
    frame[120 : 120 + len(retina), 700 : 700 + len(retina)] = retina
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 8  # turn by 90 degrees to the left to see it upright
    Image.fromarray(np.rot90(frame, -1)).save(buffer, "JPEG", quality=95, exif=exif)
    tree = write(tmp_path / "mine", {"train/0/retina.JPG": buffer.getvalue(), "train/0/other.jpg": photograph(5)})
    add(tmp_path / "out", "folder", tree, Recipe(name="test", ingest=Ingest(source="folder", px=512)))
    row = next(row for row in rows_of(tmp_path / "out") if row["image_id"] == "mine/train/0/retina")
    assert (row["source_width"], row["source_height"], row["grade"]) == (2400, 1600, 0)
    assert row["source_border"][1:] == pytest.approx([1, 1], abs=0.01)  # black in all corners and along all edges
    assert row["source_border"][0] == pytest.approx(1 - np.pi / 4 * 1390**2 / (2400 * 1600), abs=0.03)
    stored = decode(row["image"])
    # The field of view (see test_preprocess: centre 704.6, 703.4, diameter 1389.9) fills the square, upright.
    scaled = Image.fromarray(retina).resize((512, 512), Image.Resampling.LANCZOS, box=(9.6, 8.4, 1399.6, 1398.4))
    inside = np.hypot(*(np.mgrid[:512, :512] - 255.5)) < 250
    assert np.abs(stored.astype(int) - np.asarray(scaled))[inside].mean() < 4
    circle = find_circle(stored)
    assert circle is not None
    assert [circle.x, circle.y, circle.diameter] == pytest.approx([256, 256, 512], abs=5)
    if picture := os.environ.get("RAYDR_LOOK"):  # for a person
        Image.fromarray(stored).save(picture)


def test_buckets_on_both_sides(bucket, tmp_path) -> None:
    """IDRiD's folders hold blanks: they survive an s3:// address, and so does the whole way into another prefix."""
    from pyarrow import fs

    root = plant("idrid", tmp_path / "idrid")
    store, _ = Run(f"{bucket}/x").filesystem()
    fs.copy_files(str(root), "bucket/sets", fs.LocalFileSystem(), store)
    summary = add(f"{bucket}/out", "idrid", f"{bucket}/sets/")
    assert summary["source"]["added"] == 3
    here = rows_of(f"{bucket}/out")
    add(tmp_path / "out", "idrid", root)
    assert here == rows_of(tmp_path / "out")
    assert add(f"{bucket}/out", "idrid", f"{bucket}/sets")["source"]["added"] == 0


def test_phantoms_and_photographs_share_a_table(tmp_path) -> None:
    phantoms = (PhantomSet("DDR", "train", (2,) * 5), PhantomSet("DDR", "fresh", (0, 2, 0, 2, 0)))
    recipe = Recipe(name="test", ingest=Ingest(px=64, shard_size=8, phantoms=phantoms, max_quarantine=0.9))
    out, idrid = tmp_path / "out", plant("idrid", tmp_path / "idrid")
    run = Run(str(out))
    assert add(out, "idrid", idrid, recipe, role="external")["complete"] is False
    assert shards.completed(run, "real") is None  # the recipe's phantoms are still to come
    pipeline.run(recipe, run, stages=("ingest",), report=False)
    assert shards.completed(run, "real")["rows"] == 10 + 4 + 3
    card = json.loads((out / "report/dataset-card.json").read_text())
    assert {(source["dataset"], source["reader"]) for source in card["sources"]} == {
        ("IDRiD", "idrid"), ("DDR", "phantom")
    }  # fmt: skip
    with pytest.raises(UserError, match="holds phantoms called DDR: name this source with --dataset"):
        add(out, "ddr", plant("ddr", tmp_path / "ddr"), recipe)
    assert add(out, "ddr", tmp_path / "ddr", recipe, dataset="DDR-real")["complete"] is True
    assert {row["image_id"] for row in rows_of(out) if row["dataset"] == "DDR-real"} == {
        entry[0].replace("DDR/", "DDR-real/") for entry in EXPECTED["ddr"]
    }
    assert shards.completed(run, "real")["rows"] == 10 + 4 + 3 + 5
    assert cli.main(["audit", str(out)]) == 0


def test_dry_run_says_what_would_be_added_and_writes_nothing(tmp_path, capsys) -> None:
    tree = plant("ddr", tmp_path / "ddr")
    argv = ["ingest", "ddr", str(tree), "--recipe", "ddr_sd15", "--fold", "None", "--out", str(tmp_path / "out")]
    assert cli.main([*argv, "--dry-run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "DDR: 5 photographs (3 train, 2 test) in 1 shards; set aside: 1 file without label" in said
    assert not (tmp_path / "out" / "recipe.json").exists()


def test_names_become_keys_and_stay_apart() -> None:
    names = ["DDR", "Messidor-2", "my set", "my-set", "My set!", "Ärzte", "..", "a" * 90]
    slugs = [source_record.slug(name) for name in names]
    assert slugs[:2] == ["DDR", "Messidor-2"]
    assert len(set(slugs)) == len(names)
    for slug in slugs:
        assert Run("/x").path(f"real/{slug}-000000.parquet")


def test_pictures_are_thumbnails_where_fetched_and_whole_where_not(tmp_path) -> None:
    tree, out = write(tmp_path / "mine", {"train/0/a.jpg": copy_of(1), "train/1/b.jpg": copy_of(2)}), tmp_path / "out"
    add(out, "folder", tree, Recipe(name="test", ingest=Ingest(source="folder", px=256)))
    table = columns_of(Run(str(out)), "real", schema.REAL, ["image_id"]).to_pylist()
    pictures = Pictures(Run(str(out)), {row["image_id"]: row["shard"] for row in table})
    pictures.fetch(["mine/train/0/a"])
    assert decode(pictures("mine/train/0/a")).shape == (PX, PX, 3)
    stored = {row["image_id"]: row["image"] for row in rows_of(out)}
    assert pictures("mine/train/1/b") == stored["mine/train/1/b"]
