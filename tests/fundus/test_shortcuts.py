"""The audit says where the grade can be told without looking at the eye, and is silent where it cannot."""

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from published import DDR_TRAINVAL_COUNTS

from fundus.records import STRATA, copied, record, table
from fundus.trees import drawing
from raydr.fundus.audit import audit
from raydr.fundus.field_of_view import border
from raydr.fundus.phash import phash
from raydr.fundus.shortcuts import mean_colour, name_family, telling_sources
from raydr.identity import sha256
from raydr.images import encode
from raydr.schema import REAL


def small(rng: np.random.Generator, colour: np.ndarray) -> np.ndarray:
    """32 px of textured disc: enough to hash and to measure, cheap enough for thousands."""
    y, x = np.mgrid[:32, :32] - 15.5
    disc = (np.hypot(x, y) < 15)[..., None]
    return (np.clip(colour + rng.normal(0, 25, (32, 32, 1)), 0, 255) * disc).astype(np.uint8)


def cohort(names: list[str], grades: list[int], colours: np.ndarray, sizes: np.ndarray, seed: int = 0) -> pa.Table:
    """Training rows with given names, grades, tints (N, 3) and source sizes (N, 2)."""
    rng = np.random.default_rng(seed)
    records = []
    for name, grade, colour, size in zip(names, grades, colours, sizes, strict=True):
        pixels = small(rng, colour)
        image = encode(pixels)
        dataset, stem = name.split("/")
        record = dict.fromkeys(REAL.names)
        record |= {
            "image_id": name,
            "dataset": dataset,
            "split": "train",
            "grade": grade,
            "gradable": True,
            "stratum": STRATA[dataset](stem) if dataset in STRATA else None,
            "image": image,
            "width": 32,
            "height": 32,
            "source_width": int(size[0]),
            "source_height": int(size[1]),
            "sha256": sha256(image),
            "phash": phash(pixels),
        }
        records.append(record)
    return table(records)


def ddr_shaped() -> tuple[list[str], list[int]]:
    """Names and grades in DDR's train + validation proportions, one in eight: 314 of 548 normals are time-stamped."""
    names, grades = [], []
    for grade, count in enumerate(DDR_TRAINVAL_COUNTS):
        for i in range(count // 8):
            stamped = grade == 0 and i < 2511 // 8
            names.append(f"DDR/20170413{i:09d}" if stamped else f"DDR/007-{i:04d}-{grade}00")
            grades.append(grade)
    return names, grades


def test_the_time_stamp_shortcut_of_ddr() -> None:
    """Knowing only the source: a tree calls every stamped image 0 (313 of 548) and is right on four grades never or
    always: balanced accuracy (.57 + 1)/5 = .31 for five grades, (.57 + 1)/2 = .79 for any DR."""
    names, grades = ddr_shaped()
    rng = np.random.default_rng(1)
    real = cohort(names, grades, rng.uniform(80, 200, (len(names), 3)), np.full((len(names), 2), 512))
    found = {(entry.feature, entry.task): entry for entry in audit(real).shortcuts}
    for feature in ("stratum", "name family"):
        assert found[feature, "grade"].balanced_accuracy == pytest.approx(0.314, abs=0.02)
        assert found[feature, "any DR"].balanced_accuracy == pytest.approx(0.786, abs=0.01)
        assert found[feature, "grade"].found
        assert found[feature, "any DR"].found
        assert found[feature, "any DR"].chance == pytest.approx(0.5, abs=0.05)
    assert "313 of 313 'timestamp' images are grade 0, 30% of the rest" in found["stratum", "grade"].explanation
    assert not found["mean colour", "any DR"].found
    assert not found["border", "any DR"].found
    assert ("size", "grade") not in found  # one size: nothing to tell


def test_size_and_colour_shortcuts() -> None:
    """Proliferative eyes from another camera: larger and bluer. Row order changes nothing; 99 images are too few."""
    rng = np.random.default_rng(2)
    grades = [int(g) for g in rng.integers(0, 5, 400)]
    bluer = np.array(grades) == 4
    colours = rng.uniform((150, 70, 30), (200, 110, 60), (400, 3)) + bluer[:, None] * (0, 0, 60)
    sizes = rng.choice([512, 1024, 2048], (400, 1)) * np.array([1, 1]) + bluer[:, None] * 300
    real = cohort([f"X/{i}" for i in range(400)], grades, colours, sizes)
    shortcuts = audit(real).shortcuts
    assert audit(real.take(rng.permutation(400))).shortcuts == shortcuts
    assert audit(real.slice(0, 99)).shortcuts == ()
    found = {(entry.feature, entry.task): entry.found for entry in shortcuts}
    assert found["size", "grade"]
    assert found["mean colour", "grade"]
    assert found["all", "grade"]
    assert ("border", "grade") not in found  # every border is the same


def test_no_shortcut_where_there_is_none() -> None:
    rng = np.random.default_rng(3)
    grades = [int(g) for g in rng.choice(5, 600, p=[0.5, 0.1, 0.25, 0.05, 0.1])]
    names = [f"X/{'IM' if rng.random() < 0.5 else 'scan_'}{i:05d}" for i in range(600)]
    real = cohort(names, grades, rng.uniform(80, 200, (600, 3)), rng.choice([512, 1024], (600, 2)))
    found = audit(real)
    assert [entry for entry in found.shortcuts if entry.found] == []
    assert {entry.feature for entry in found.shortcuts} >= {"name family", "size", "mean colour", "all"}
    assert found.leaks == []


def test_one_data_set_for_each_grade_is_a_shortcut() -> None:
    rng = np.random.default_rng(4)
    grades = [0] * 60 + [4] * 60
    names = [f"{'P' if grade else 'H'}/{i}" for i, grade in enumerate(grades)]
    real = cohort(names, grades, rng.uniform(80, 200, (120, 3)), np.full((120, 2), 512))
    found = {(entry.dataset, entry.feature, entry.task): entry for entry in audit(real).shortcuts}
    assert found["all data sets", "data set", "grade"].balanced_accuracy == 1.0
    assert found["all data sets", "data set", "grade"].found


@pytest.mark.parametrize(
    ("image_id", "family"),
    [
        ("DDR/007-0004-000", "9-9-9"),
        ("DDR/20170413102628830", "9"),
        ("EyePACS/10_left", "9_left"),
        ("FGADR/0000_3", "9_3"),
        ("APTOS/000c1434d8d7", "x"),
        ("Messidor-2/IM004176", "im9"),
        ("Messidor-2/20051020_43808_0100_PP", "9_9_9_pp"),
        ("DeepDRiD/265_r2", "9_r2"),
        ("IDRiD/train/IDRiD_001", "idrid_9"),
    ],
)
def test_name_families(image_id: str, family: str) -> None:
    assert name_family(image_id) == family


def test_colour_and_border_by_hand() -> None:
    pixels = np.zeros((20, 20, 3), np.uint8)
    pixels[:, 5:15] = (200, 100, 50)
    assert mean_colour(pixels) == [200, 100, 50]
    assert border(pixels) == [0.5, 1.0, 0.5]  # half black, all corners, left and right edges of four
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 90
    assert border(wide) == [pytest.approx(2 / 3), 1.0, 0.5]
    assert border(wide.repeat(50, 0).repeat(50, 1)) == [pytest.approx(2 / 3, abs=0.01), 1.0, 0.5]


def test_a_border_that_the_crop_removes_is_a_shortcut_all_the_same() -> None:
    """Proliferative eyes come in wide black frames: cropped they look like the others."""
    rng = np.random.default_rng(6)
    records = []
    for k, grade in enumerate([0, 4] * 60):
        eye = drawing(k % 30, width=120, height=120)
        frame = Image.new("RGB", (120 + int(rng.integers(0, 9)) + (60 if grade == 4 else 0), 128))
        frame.paste(eye, ((frame.width - 120) // 2, 4))
        records.append(record(f"X/{k}", copied(frame, "PNG"), grade=grade, px=48))
    real = table(records)
    found = {(entry.feature, entry.task): entry for entry in audit(real).shortcuts}
    assert found["border", "any DR"].found
    assert found["border", "any DR"].balanced_accuracy > 0.95
    # Of the stored pictures nothing would be seen.
    null = pa.nulls(real.num_rows, real.schema.field("source_border").type)
    blind = audit(real.set_column(real.schema.get_field_index("source_border"), "source_border", null))
    assert not [entry for entry in blind.shortcuts if entry.feature == "border" and entry.found]


def fgadr_shaped() -> tuple[list[str], list[int]]:
    """FGADR's 1,842 grades, one in four; files that end in _3 hold the severe ones, the other sites everything."""
    names, grades, rng = [], [], np.random.default_rng(0)
    for grade, count in enumerate((101, 212, 595, 647, 287)):
        for i in range(count // 4):
            site = 3 if grade >= 3 and i % 2 else rng.integers(1, 3)
            names.append(f"FGADR/{len(names):04d}_{site}")
            grades.append(grade)
    return names, grades


def test_the_site_shortcut_of_fgadr() -> None:
    names, grades = fgadr_shaped()
    rng = np.random.default_rng(5)
    real = cohort(names, grades, rng.uniform(80, 200, (len(names), 3)), np.full((len(names), 2), 1280))
    found = {(entry.feature, entry.task): entry for entry in audit(real).shortcuts}
    for feature, site in (("stratum", "site 3"), ("name family", "9_3")):
        entry = found[feature, "severe"]
        assert entry.found
        # All of site 3 is severe, half of the severe eyes are there: (.5 + 1)/2.
        assert entry.balanced_accuracy == pytest.approx(0.75, abs=0.02)
        in_site = sum(name.endswith("_3") for name in names)
        assert f"{in_site} of {in_site} '{site}' images are grades 3-4, " in entry.explanation
        assert "site 1" not in entry.explanation
    assert not found["mean colour", "severe"].found


def test_telling_sources_name_the_fewest_grades() -> None:
    grades = np.array([0] * 30 + [3, 4] * 15 + [0, 1, 2, 3, 4] * 10)
    names = ["a"] * 30 + ["b"] * 30 + ["c"] * 50
    assert telling_sources(names, grades) == (
        "30 of 30 'a' images are grade 0, 12% of the rest; 30 of 30 'b' images are grades 3-4, 25% of the rest"
    )
