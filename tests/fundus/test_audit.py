"""The audit finds what is planted, finds nothing where nothing is, and proposes drops that keep the test split."""

import json
import re
import time

import numpy as np
import pyarrow as pa
import pytest
import skimage.data
from PIL import Image, ImageEnhance

from fundus.records import copied, record, table
from fundus.trees import drawing, photograph
from raydr.fundus.audit import Audit, audit
from raydr.fundus.audit_page import page
from raydr.fundus.card import Source, card, markdown
from raydr.fundus.duplicates import MIN_CORRELATION, correlation, near_pairs, zoomed_correlation
from raydr.fundus.phash import MIRROR_MASK, ORIENTATIONS, TURN_MASK, detail
from raydr.fundus.preprocess import prepare
from raydr.schema import QUARANTINE


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


def test_class_balance(planted) -> None:
    balance = {(entry.dataset, entry.split): entry for entry in planted[1].balance}
    assert balance["B", "test"].counts == (4, 4, 5, 4, 4)
    assert balance["B", "test"].ratio == 1.25
    assert balance["A", "prior"].num_ungraded == 1
    assert balance["A", "prior"].ratio == float("inf")


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
