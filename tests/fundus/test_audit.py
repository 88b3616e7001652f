"""The audit finds what is planted, finds nothing where nothing is, and proposes drops that keep the test split."""

import io
import json
import re
import time

import numpy as np
import pyarrow as pa
import pytest
import skimage.data
from PIL import Image, ImageEnhance
from published import DDR_TRAINVAL_COUNTS

from fundus.trees import drawing, photograph
from raydr.fundus.audit import Audit, audit
from raydr.fundus.audit_page import page
from raydr.fundus.card import Source, card, markdown
from raydr.fundus.duplicates import MIN_CORRELATION, correlation, near_pairs, zoomed_correlation
from raydr.fundus.field_of_view import border
from raydr.fundus.phash import MIRROR_MASK, ORIENTATIONS, TURN_MASK, detail, phash
from raydr.fundus.preprocess import prepare, prepare_row
from raydr.fundus.readers import ddr, fgadr
from raydr.fundus.readers.rows import Row
from raydr.fundus.shortcuts import mean_colour, name_family, telling_sources
from raydr.identity import sha256
from raydr.images import encode
from raydr.schema import QUARANTINE, REAL


def record(
    image_id: str, data: bytes, split: str = "train", grade: int | None = 0, patient: str | None = None, px: int = 96
):
    dataset = image_id.split("/")[0]
    stratum = STRATA[dataset](image_id.split("/")[1]) if dataset in STRATA else None
    row = Row("x.jpg", image_id, dataset, split, patient, grade, grade is not None, stratum)
    return prepare_row(row, data, px)


def table(records: list[dict]) -> pa.Table:
    return pa.Table.from_pylist(records, schema=REAL)


def copied(image: Image.Image, form: str = "JPEG", **kwargs) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **kwargs)
    return buffer.getvalue()


def original(seed: int) -> Image.Image:
    return drawing(seed, width=480, height=400)


def pairs_of(found: Audit) -> set[tuple[str, str, str, bool]]:
    return {(pair.a, pair.b, pair.kind, pair.mirrored) for pair in found.duplicates}


@pytest.fixture(scope="module")
def planted() -> tuple[pa.Table, Audit]:
    """60 different photographs, and of some of them copies as they occur: across splits, sets and labels."""
    records = [record(f"A/{i:03d}", copied(original(i), quality=95), grade=i % 5) for i in range(40)]
    records += [record(f"B/{i:03d}", copied(original(i), quality=95), split="test", grade=i % 5) for i in range(40, 60)]
    image = original
    records += [
        record("A/same-bytes", copied(image(0), quality=95), grade=0),
        record("A/other-label", copied(image(1), quality=70), grade=3),  # 001 says 1
        record("B/in-test", copied(image(2), quality=60), split="test", grade=2),
        record("C/resized", copied(image(3).resize((240, 200)), "PNG"), grade=3),
        record(
            "A/mirrored", copied(image(41).transpose(Image.Transpose.FLIP_LEFT_RIGHT), quality=90), grade=1
        ),  # B/041
        record("A/upside-down", copied(image(43).transpose(Image.Transpose.ROTATE_180), quality=90), grade=3),  # B/043
        record(
            "A/flipped", copied(image(44).transpose(Image.Transpose.FLIP_TOP_BOTTOM), quality=90), grade=4
        ),  # B/044: upside down and mirrored
        record(
            "A/darker", copied(ImageEnhance.Brightness(image(5)).enhance(0.5), quality=85), split="validation", grade=0
        ),
        record("A/trimmed", copied(image(7).crop((64, 24, 416, 376)), quality=85), grade=2),
        record("E/external", copied(image(42), quality=80), split="external", grade=2),  # B/042 is test: no leak
        record("A/prior", copied(image(6), quality=80), split="prior", grade=None),  # 006 is train: no leak
    ]
    real = table(records)
    return real, audit(real)


def test_all_planted_copies_and_nothing_else(planted) -> None:
    assert pairs_of(planted[1]) == {
        ("A/000", "A/same-bytes", "exact", False),
        ("A/001", "A/other-label", "perceptual", False),
        ("A/002", "B/in-test", "perceptual", False),
        ("A/003", "C/resized", "perceptual", False),
        ("A/mirrored", "B/041", "perceptual", True),
        ("A/upside-down", "B/043", "perceptual", False),
        ("A/flipped", "B/044", "perceptual", True),
        ("A/005", "A/darker", "perceptual", False),
        ("A/007", "A/trimmed", "perceptual", False),
        ("B/042", "E/external", "perceptual", False),
        ("A/006", "A/prior", "perceptual", False),
    }


def test_leaks_are_copies_on_both_sides_of_a_split(planted) -> None:
    found = planted[1]
    assert found.leaks == [
        "A/002 (train) and B/in-test (test) show the same picture",
        "A/005 (train) and A/darker (validation) show the same picture",
        "A/flipped (train) and B/044 (test) show the same picture",
        "A/mirrored (train) and B/041 (test) show the same picture",
        "A/upside-down (train) and B/043 (test) show the same picture",
    ]
    conflicts = [(pair.a, pair.b) for pair in found.duplicates if pair.conflicting]
    assert conflicts == [("A/001", "A/other-label")]
    assert "A/001 (grade 1) and A/other-label (grade 3) show the same picture" in found.warnings
    assert found.counts["exact duplicates"] == 1
    assert found.counts["perceptual duplicates"] == 10
    assert found.counts["across splits"] == 5
    assert found.counts["across data sets"] == 6
    assert {pair.a for pair in found.duplicates if pair.turned} == {"A/upside-down", "A/flipped"}


def test_drops_keep_the_test_split_and_no_doubtful_label(planted) -> None:
    real, found = planted
    drops = {drop.image_id: (drop.because_of, drop.reason) for drop in found.duplicates_to_drop}
    assert drops == {
        "A/same-bytes": ("A/000", "duplicate"),
        "A/001": ("A/other-label", "conflicting labels"),
        "A/other-label": ("A/001", "conflicting labels"),
        "A/002": ("B/in-test", "duplicate"),
        "C/resized": ("A/003", "duplicate"),
        "A/mirrored": ("B/041", "duplicate"),
        "A/upside-down": ("B/043", "duplicate"),
        "A/flipped": ("B/044", "duplicate"),
        "A/005": ("A/darker", "duplicate"),
        "A/trimmed": ("A/007", "duplicate"),
        "A/prior": ("A/006", "duplicate"),
    }
    kept = real.filter(pa.array([image_id not in drops for image_id in real["image_id"].to_pylist()]))
    after = audit(kept)
    assert after.leaks == []
    assert pairs_of(after) == {("B/042", "E/external", "perceptual", False)}
    assert after.duplicates_to_drop == ()


def test_images_may_stay_outside_the_table(planted) -> None:
    """A run larger than memory: same findings from a table without the image column; few pictures are fetched."""
    real, found = planted
    bytes_of = dict(zip(real["image_id"].to_pylist(), real["image"].to_pylist(), strict=True))
    events: list[dict] = []
    again = audit(real.drop_columns(["image"]), image_of=bytes_of.__getitem__, on_event=events.append)
    assert again == found
    assert {event["what"] for event in events} >= {"near-duplicates", "A pictures"}
    assert all(event["done"] <= event["total"] for event in events)


def test_row_order_changes_nothing(planted) -> None:
    real, found = planted
    order = np.random.default_rng(1).permutation(real.num_rows)
    again = audit(real.take(order))
    assert again.leaks == found.leaks
    assert again.duplicates_to_drop == found.duplicates_to_drop


def test_json_and_page(planted) -> None:
    real, found = planted
    stored = json.loads(json.dumps(found.to_json()))
    assert stored["leaks"] == found.leaks
    assert stored["duplicates"][0]["a"] == "A/000"
    bytes_of = dict(zip(real["image_id"].to_pylist(), real["image"].to_pylist(), strict=True))
    html = page(found, bytes_of.__getitem__, "Audit of <run>")
    assert html.count("<figure") == len(found.duplicates)
    assert html.count("data:image/jpeg;base64,") == 2 * len(found.duplicates)
    assert html.index("A/mirrored") < html.index("A/same-bytes")  # leaks first
    assert html.count("upside down") == 2
    assert "Audit of &lt;run&gt;" in html
    assert not re.search(r'(src|href)="(?!data:)', html)  # self-contained


def test_patients_in_two_splits() -> None:
    records = [
        record("E/1_left", photograph(1), "train", 0, "E/1"),
        record("E/1_right", photograph(2), "test", 0, "E/1"),
        record("E/2_left", photograph(3), "train", 0, "E/2"),
        record("E/2_right", photograph(4), "prior", 0, "E/2"),
        record("E/3_left", photograph(5), "test", 0, "E/3"),
        record("E/3_right", photograph(6), "external", 0, "E/3"),
    ]
    found = audit(table(records))
    assert found.leaks == ["patient E/1 is in test and train"]
    assert found.patient_leaks[0].image_ids == ("E/1_left", "E/1_right")


def test_three_copies_with_two_labels_leave_only_the_test_row() -> None:
    data = photograph(1)
    records = [
        record("A/1", data, "train", 1),
        record("A/2", data, "train", None),
        record("A/3", data, "train", 2),
        record("A/4", data, "test", 2),
    ]
    assert [drop.image_id for drop in audit(table(records)).duplicates_to_drop] == ["A/1", "A/2", "A/3"]
    # Without the test row nobody knows the label; an ungraded copy among equals goes first.
    assert len(audit(table(records[:3])).duplicates_to_drop) == 3
    assert [drop.image_id for drop in audit(table(records[:2])).duplicates_to_drop] == ["A/2"]


STRATA = {"DDR": ddr.stratum_of, "FGADR": fgadr.stratum_of}


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


def test_class_balance(planted) -> None:
    balance = {(entry.dataset, entry.split): entry for entry in planted[1].balance}
    assert balance["B", "test"].counts == (4, 4, 5, 4, 4)
    assert balance["B", "test"].ratio == 1.25
    assert balance["A", "prior"].num_ungraded == 1
    assert balance["A", "prior"].ratio == float("inf")


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


def test_near_pairs_are_all_pairs() -> None:
    """Against the definition, on hashes close enough that many pairs qualify; blocks smaller than the table."""
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2**63, 20, dtype=np.uint64)
    flips = np.uint64(1) << rng.integers(0, 64, (300, 4)).astype(np.uint64)
    hashes = base[rng.integers(0, 20, 300)] ^ np.bitwise_xor.reduce(flips, axis=1)
    hashes[:80] ^= MIRROR_MASK
    hashes[50:150] ^= TURN_MASK
    for _, _, mask in ORIENTATIONS:
        expected = {
            (i, j)
            for i in range(300)
            for j in range(i + 1, 300)
            if (int(hashes[i]) ^ int(hashes[j]) ^ mask).bit_count() <= 6
        }
        assert len(expected) > 100
        found = near_pairs(hashes, 6, mask, block=7, stripe=50)
        assert {tuple(pair) for pair in found.tolist()} == expected


def test_fifty_thousand_hashes_in_seconds() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**63, 50_000, dtype=np.uint64)
    hashes[40_000] = hashes[17] ^ np.uint64(0b1011)
    start = time.perf_counter()
    found = near_pairs(hashes)
    seconds = time.perf_counter() - start
    assert [17, 40_000] in found.tolist()
    assert seconds < 15  # 0.9 s on an idle core


def test_correlation_of_vessel_detail_on_a_real_photograph() -> None:
    """Copies of one eye correlate, a mirror image and another part of the retina do not."""
    retina = skimage.data.retina()
    image = Image.fromarray(retina)

    def look(picture: Image.Image) -> np.ndarray:
        return detail(prepare(copied(picture, "PNG"), 256).pixels)[None]

    reference = look(image)
    assert correlation(reference, reference)[0] == pytest.approx(1, abs=1e-4)
    assert correlation(reference, look(image.resize((400, 400))))[0] > 0.95
    trimmed = Image.fromarray(retina[40:-40, 40:-40])
    assert correlation(reference, look(trimmed))[0] < MIN_CORRELATION
    sides = [prepare(copied(picture, "PNG"), 256).pixels for picture in (image, trimmed)]
    assert zoomed_correlation(*sides) > 0.98
    assert zoomed_correlation(*sides[::-1]) > 0.98
    assert correlation(reference, look(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)))[0] < 0.4
    assert correlation(reference, look(Image.fromarray(retina[300:1100, 300:1100])))[0] < 0.4


def test_card(planted) -> None:
    real, found = planted
    quarantine = pa.Table.from_pylist(
        [
            {"table": "real", "key": "train/492_right.jpeg", "reason": "truncated", "detail": "cut"},
            {"table": "real", "key": "a|b.jpg", "reason": "label out of range", "detail": "7"},
        ],
        schema=QUARANTINE,
    )
    sources = [
        Source("eyepacs", "s3://bucket/eyepacs", "EyePACS", "prior", 68, 2),
        Source("phantom", "", "DDR", None, 5, 0),
    ]
    made = json.loads(json.dumps(card(real, quarantine, sources, found)))
    assert made["num_photographs"] == 71
    assert made["num_graded"] == 70
    assert made["num_dropped"] == 2
    assert {"dataset": "B", "split": "test", "grades": [4, 4, 5, 4, 4], "ungraded": 0} in made["counts"]
    assert made["dropped"][1] == {"reason": "truncated", "count": 1, "examples": ["train/492_right.jpeg"]}
    text = markdown(made)
    assert "Kaggle competition rules" in text
    assert "no patient behind them" in text
    assert "| label out of range | 1 | `a\\|b.jpg` |" in text
    assert "| B | test | 4 | 4 | 5 | 4 | 4 | 0 |" in text
    assert "show the same picture" in text
    assert "Nothing." in markdown(card(real, quarantine.slice(0, 0), sources))
