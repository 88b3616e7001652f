"""Splits and folds: official ones kept, groups whole, grades in proportion, equal for equal seeds."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from published import DDR_TRAINVAL_COUNTS

from raydr.errors import UserError
from raydr.fundus.readers.rows import Row
from raydr.fundus.splits import Fractions, assign_splits, groups_of, make_folds, read_folds, stratified
from raydr.grades import EYEPACS_COUNTS


def row(name: str, grade: int | None, patient: str | None = None, split: str | None = None, dataset: str = "D") -> Row:
    return Row(f"{name}.jpg", f"{dataset}/{name}", dataset, split, patient, grade, grade is not None, None)


def eyes(num_patients: int) -> list[Row]:
    """Two eyes a patient, grades in EyePACS's proportions, the second eye often graded like the first."""
    rng = np.random.default_rng(0)
    shares = np.array(EYEPACS_COUNTS) / sum(EYEPACS_COUNTS)
    rows = []
    for patient in range(num_patients):
        first = int(rng.choice(5, p=shares))
        second = first if rng.random() < 0.8 else int(rng.choice(5, p=shares))
        rows += [row(f"{patient}_left", first, f"p{patient}"), row(f"{patient}_right", second, f"p{patient}")]
    return rows


def test_groups_by_hand() -> None:
    ids = ["a", "b", "c", "d", "e"]
    groups = groups_of(ids, ["p", None, "p", None, None], [("d", "c"), ("b", "gone")])
    assert groups == {"a": "a", "c": "a", "d": "a", "b": "b", "e": "e"}


def test_patients_stay_together_and_grades_in_proportion() -> None:
    rows = eyes(2000)
    done = assign_splits(rows, seed=1)
    assert [r.image_id for r in done] == [r.image_id for r in rows]
    splits = {}
    for entry in done:
        assert splits.setdefault(entry.patient_id, entry.split) == entry.split
    for grade in range(5):
        counts = Counter(r.split for r in done if r.grade == grade)
        total = sum(counts.values())
        for split, share in zip(("train", "validation", "test"), Fractions().shares, strict=True):
            assert abs(counts[split] - share * total) <= 3, (grade, counts)


def test_equal_for_equal_seeds_whatever_the_order() -> None:
    rows = eyes(300)
    first = {r.image_id: r.split for r in assign_splits(rows, seed=7)}
    again = {r.image_id: r.split for r in assign_splits(rows[::-1], seed=7)}
    other = {r.image_id: r.split for r in assign_splits(rows, seed=8)}
    assert first == again
    assert 0.3 < np.mean([first[i] == other[i] for i in first]) < 0.8  # .54 expected of two independent draws


def test_official_splits_are_kept_and_followed() -> None:
    rows = [
        row("a", 0, split="train"),
        row("b", 1, split="test"),
        row("c", 1),
        row("d", 2, dataset="E"),
        *(row(f"x{i}", 0) for i in range(10)),
    ]
    done = {r.image_id: r.split for r in assign_splits(rows, 1, duplicates=[("D/b", "D/c"), ("E/d", "D/a")])}
    assert (done["D/a"], done["D/b"]) == ("train", "test")
    assert done["D/c"] == "test"  # a copy of a test photograph
    assert done["E/d"] == "train"
    assert Counter(done[f"D/x{i}"] for i in range(10)) == {"train": 7, "validation": 1, "test": 2}


def test_a_group_of_train_and_test_photographs_goes_with_test() -> None:
    rows = [row("a", 0, split="train"), row("b", 0, split="test"), row("c", 0)]
    done = assign_splits(rows, 1, duplicates=[("D/a", "D/c"), ("D/b", "D/c")])
    assert [r.split for r in done] == ["train", "test", "test"]


def test_ungraded_rows_are_split_too() -> None:
    done = assign_splits([row(f"u{i}", None) for i in range(100)], seed=1)
    assert Counter(r.split for r in done) == {"train": 70, "validation": 10, "test": 20}


def test_a_share_of_zero_stays_empty() -> None:
    done = assign_splits(eyes(50), seed=1, fractions=Fractions(0.8, 0.2, 0.0))
    assert {r.split for r in done} == {"train", "validation"}
    with pytest.raises(UserError, match="add up to 1"):
        Fractions(0.5, 0.1, 0.1)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 4)), min_size=1, max_size=40),
    st.lists(st.tuples(st.integers(0, 39), st.integers(0, 39)), max_size=10),
)
def test_no_group_ever_spans_splits(people: list[tuple[int, int]], links: list[tuple[int, int]]) -> None:
    rows = [row(str(i), grade, f"p{patient}") for i, (patient, grade) in enumerate(people)]
    pairs = [(f"D/{a}", f"D/{b}") for a, b in links]
    done = assign_splits(rows, 3, duplicates=pairs)
    groups = groups_of([r.image_id for r in rows], [r.patient_id for r in rows], pairs)
    for a in done:
        for b in done:
            assert groups[a.image_id] != groups[b.image_id] or a.split == b.split


def pool(counts=DDR_TRAINVAL_COUNTS) -> dict[str, int | None]:
    grades: dict[str, int | None] = {}
    for grade, count in enumerate(counts):
        grades.update({f"DDR/{grade}-{i:04d}": grade for i in range(count)})
    return grades


def test_the_papers_folds() -> None:
    """8,763 photographs: five disjoint validation sets of 33 a grade, training sets of 4353/408/3100/132/605."""
    grades = pool()
    folds = make_folds(grades, {}, seed=1)
    assert len(grades) == 8763
    for fold in range(5):
        validation = Counter(grades[i] for i, f in folds.items() if f == fold)
        assert validation == dict.fromkeys(range(5), 33)
        training = Counter(grades[i] for i in grades if folds.get(i) != fold)
        assert [training[g] for g in range(5)] == [4353, 408, 3100, 132, 605]
    assert folds == make_folds(dict(reversed(grades.items())), {}, seed=1)
    assert folds != make_folds(grades, {}, seed=2)


def test_folds_keep_groups_whole() -> None:
    """Every severe photograph is needed, and 20 of them come in near-duplicate pairs."""
    grades = pool()
    severe = sorted(i for i in grades if grades[i] == 3)
    pairs = [(severe[2 * k], severe[2 * k + 1]) for k in range(10)] + [(severe[100], "DDR/2-0000")]
    groups = groups_of(list(grades), [None] * len(grades), pairs)
    folds = make_folds(grades, groups, seed=5)
    assert sorted(Counter(folds.values()).values()) == [165] * 5
    for a, b in pairs:
        assert folds.get(a) == folds.get(b) is not None


def test_folds_of_patients() -> None:
    rows = eyes(3000)
    grades = {r.image_id: r.grade for r in rows}
    groups = groups_of([r.image_id for r in rows], [r.patient_id for r in rows])
    folds = make_folds(grades, groups, seed=1, per_grade=16)
    by_patient: dict[str, set] = {}
    for entry in rows:
        by_patient.setdefault(groups[entry.image_id], set()).add(folds.get(entry.image_id))
    assert all(len(inside) == 1 for inside in by_patient.values())
    with pytest.raises(UserError, match="to an even number where every patient has two eyes"):
        make_folds(grades, groups, seed=1, per_grade=15)  # 75 photographs a fold out of pairs
    assert Counter(Counter(folds.values()).values()) == {80: 5}


def test_folds_leave_ungraded_photographs_out() -> None:
    grades = {**pool((5, 5, 5, 5, 6)), "DDR/u": None}
    groups = groups_of(list(grades), [None] * len(grades), [("DDR/u", "DDR/4-0000")])
    folds = make_folds(grades, groups, seed=1, per_grade=1)
    assert "DDR/u" not in folds
    assert "DDR/4-0000" not in folds


def test_too_small_pools_are_refused() -> None:
    with pytest.raises(UserError, match=r"165 images of grade 3 \(severe\), the pool holds 164"):
        make_folds(pool((200, 200, 200, 164, 200)), {}, seed=1)
    grades = pool((2, 2, 2, 2, 2))
    groups = groups_of(list(grades), [None] * 10, [("DDR/3-0000", "DDR/3-0001")])
    with pytest.raises(UserError, match=r"lacks 1 images of grade 3 \(severe\) once patients"):
        make_folds(grades, groups, seed=1, num_folds=2, per_grade=1)


GRADES = {"DDR/007-0001-000": 0, "DDR/007-0002-000": 3, "DDR/20170413102628830": 1, "DDR/007-0004-000": 2}


def test_published_validation_lists() -> None:
    lists = {
        "folds/fold1_val.txt": b"007-0001-000.jpg 0\r\nDR_grading/train/007-0002-000.JPG 3\n",
        "folds/fold2_val.txt": b"20170413102628830 1\n",
        "folds/fold1_train.txt": b"20170413102628830.jpg 1\n007-0004-000.jpg 2\n",
        "folds/test_1.txt": b"somebody-else.jpg 4\n",
        "folds/readme.md": b"text",
    }
    expected = {"DDR/007-0001-000": 0, "DDR/007-0002-000": 0, "DDR/20170413102628830": 1}
    assert read_folds(lists, GRADES) == expected


def test_published_training_lists_alone() -> None:
    lists = {
        "train_0.txt": b"007-0002-000.jpg 3\n20170413102628830.jpg 1\n007-0004-000.jpg 2\n",
        "train_1.txt": b"007-0001-000.jpg 0\n20170413102628830.jpg 1\n007-0004-000.jpg 2\n",
    }
    assert read_folds(lists, GRADES) == {"DDR/007-0001-000": 0, "DDR/007-0002-000": 1}


@pytest.mark.parametrize(
    ("lists", "sentence"),
    [
        ({"val_0.txt": b"nobody.jpg 0\n"}, r"val_0\.txt lists nobody\.jpg, which is not in train or validation"),
        ({"val_0.txt": b"007-0001-000.jpg 4\n"}, "says grade 4 for DDR/007-0001-000, the data set says 0"),
        (
            {"val_0.txt": b"007-0001-000.jpg 0", "val_1.txt": b"007-0001-000.jpg 0"},
            "in the validation lists of two folds",
        ),
        ({"notes.txt": b"x 1"}, "no fold lists found"),
    ],
)
def test_lists_that_do_not_fit_are_refused(lists: dict[str, bytes], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        read_folds(lists, GRADES)


def test_folds_written_as_lists_are_read_back() -> None:
    grades = pool((10, 10, 10, 10, 10))
    folds = make_folds(grades, {}, seed=1, per_grade=2)
    lists = {
        f"fold{k}_val.txt": "".join(f"{i[4:]}.jpg {grades[i]}\n" for i, f in folds.items() if f == k).encode()
        for k in range(5)
    }
    assert read_folds(lists, grades) == folds


def test_stratified_by_hand() -> None:
    """Four photographs of one grade in halves: two and two, whatever the seed."""
    ids = {name: name for name in "abcd"}
    for seed in range(5):
        assert sorted(stratified(ids, dict.fromkeys("abcd", 2), (0.5, 0.5), seed).values()) == [0, 0, 1, 1]
