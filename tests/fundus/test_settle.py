"""Decisions about a new source: by hand, without a file or Ray."""

import pytest

from raydr.errors import UserError
from raydr.fundus.audit import Duplicate
from raydr.fundus.readers.rows import Row
from raydr.fundus.settle import Options, check_early, difference, settle, tally


def row(name: str, grade: int | None = 0, split: str | None = None, patient: str | None = None, size: int = 10) -> Row:
    dataset = name.split("/")[0]
    return Row(f"{name}.jpg", name, dataset, split, patient, grade, grade is not None, None, size)


def pair(a: Row, b: Row) -> Duplicate:
    return Duplicate(
        a.image_id, b.image_id, "perceptual", False, 1, 0.95, (str(a.split), str(b.split)), (a.dataset, b.dataset),
        (a.grade, b.grade),
    )  # fmt: skip


def test_a_copy_of_a_photograph_in_the_run_takes_its_split() -> None:
    known = row("DDR/t", split="test")
    new = [row(f"APTOS/{k}", grade=k % 5) for k in range(40)]
    settled = settle(new, [known], [pair(new[7], known)], Options(split_seed=1), with_folds=False)
    assert settled.splits["APTOS/7"] == "test"
    assert settled.leaks == []
    assert settled.duplicates[0].splits == ("test", "test")
    assert "DDR/t" not in settled.splits


def test_an_official_split_stays_and_the_leak_is_told() -> None:
    known, new = row("DDR/t", split="test"), row("IDRiD/a", split="train")
    settled = settle([new], [known], [pair(known, new)], Options(split_seed=1), with_folds=False)
    assert settled.splits == {"IDRiD/a": "train"}
    assert [(leak.a, leak.b) for leak in settled.leaks] == [("DDR/t", "IDRiD/a")]


def test_dropping_removes_new_copies_only_and_so_the_leak() -> None:
    known, new, other = row("DDR/t", split="test"), row("IDRiD/a", split="train"), row("IDRiD/b", split="train")
    options = Options(split_seed=1, drop_duplicates=True)
    settled = settle([new, other], [known], [pair(known, new)], options, with_folds=False)
    assert set(settled.drops) == {"IDRiD/a"}
    assert settled.drops["IDRiD/a"].because_of == "DDR/t"
    assert settled.leaks == []
    # The other way round the copy in the run is the one to go, and it cannot: the leak stays told.
    train, test = row("DDR/t", split="train"), row("IDRiD/a", split="test")
    settled = settle([test], [train], [pair(train, test)], options, with_folds=False)
    assert settled.drops == {}
    assert len(settled.leaks) == 1


def pool(per_grade: int) -> list[Row]:
    return [row(f"DDR/{grade}-{k}", grade, "train") for grade in range(5) for k in range(per_grade)]


def test_folds_hold_each_grade_equally_and_keep_copies_together() -> None:
    rows = pool(12)
    copies = [pair(rows[0], rows[1]), pair(rows[13], rows[14])]
    settled = settle(rows, [], copies, Options(split_seed=3, per_grade=2))
    grade = {r.image_id: r.grade for r in rows}
    counts = [[0] * 5 for _ in range(5)]
    for image_id, fold in settled.folds.items():
        counts[fold][grade[image_id]] += 1
    assert counts == [[2] * 5] * 5
    for copy in copies:
        assert settled.folds.get(copy.a) == settled.folds.get(copy.b)
    assert settled == settle(rows, [], copies, Options(split_seed=3, per_grade=2))
    assert settled.folds != settle(rows, [], copies, Options(split_seed=4, per_grade=2)).folds


def test_published_lists_may_name_what_cannot_be_used() -> None:
    rows, broken = pool(2), row("DDR/broken", 3, "train")
    lists = {"fold0_val.txt": b"0-0.jpg 0\nbroken.jpg 3\n", "fold1_val.txt": b"1-1.jpg 1\n"}
    settled = settle(rows, [], [], Options(split_seed=1), lists, unusable=[broken])
    assert settled.folds == {"DDR/0-0": 0, "DDR/1-1": 1}


def test_a_small_pool_is_an_error_only_where_folds_are_required() -> None:
    rows = pool(3)
    settled = settle(rows, [], [], Options(split_seed=1))
    assert settled.folds == {}
    assert "need 165 images of grade 0" in settled.note
    with pytest.raises(UserError, match="need 165 images of grade 0"):
        settle(rows, [], [], Options(split_seed=1, folds_required=True))
    with pytest.raises(UserError, match="need 165 images of grade 0"):
        check_early(rows, Options(split_seed=1, folds_required=True), None, with_folds=True)
    check_early(rows, Options(split_seed=1, folds_required=True), None, with_folds=False)
    with pytest.raises(UserError, match="which is not in train or validation"):
        check_early(rows, Options(split_seed=1), {"val_0.txt": b"nobody.jpg 0"}, with_folds=True)


def test_prior_rows_take_no_part_in_folds() -> None:
    rows = [*pool(5), row("DDR/p", 2, "prior"), row("DDR/u", None, "train")]
    settled = settle(rows, [], [], Options(split_seed=1, per_grade=1))
    assert len(settled.folds) == 25
    assert not {"DDR/p", "DDR/u"} & set(settled.folds)


def test_differences_in_words() -> None:
    before = [row("D/a", 1), row("D/b", 2), row("D/c", 3)]
    assert difference(before, before[::-1]) == ""
    after = [row("D/a", 4, size=11), row("D/c", 3), row("D/d", 0), row("D/e", 0)]
    assert difference(before, after) == (
        "2 added (first D/d), 1 removed (first D/b), 1 changed (first D/a: grade 1 -> 4, bytes 10 -> 11)"
    )
    assert difference([row("D/a", None)], [row("D/a", 2, "train")]) == (
        "1 changed (first D/a: split none -> train, grade none -> 2, gradable False -> True)"
    )


def test_tally_counts_the_most_frequent_first() -> None:
    assert list(tally(["b", "a", "b", "c"]).items()) == [("b", 2), ("a", 1), ("c", 1)]
