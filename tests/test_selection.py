import numpy as np
import pyarrow as pa
import pytest

from raydr import selection
from raydr.errors import UserError
from raydr.kinds import CHANGES
from raydr.selection import (
    ARMS,
    Tables,
    common_counts,
    counts_of,
    counts_of_arms,
    part_of,
    probe_counts,
    probe_rows,
    supply,
    training_rows,
    usable,
    wanted,
)

BAND = (0.7, 0.9)


def real_table(**counts):
    """One row a photograph: `train=(10, 2, ...)` photographs per grade; folds go round 0, 1, 2."""
    rows = [
        (split, grade) for split, per_grade in counts.items() for grade in range(5) for _ in range(per_grade[grade])
    ]
    return pa.table(
        {
            "image_id": [f"{split}-{k}" for k, (split, _) in enumerate(rows)],
            "split": [split for split, _ in rows],
            "grade": pa.array([grade for _, grade in rows], pa.int8()),
            "fold": pa.array([k % 3 for k in range(len(rows))], pa.int8()),
        }
    )


def sample_table(rows):
    """`rows` of (kind, grade, index, score)"""
    return pa.table(
        {
            "kind": [row[0] for row in rows],
            "grade": pa.array([row[1] for row in rows], pa.int8()),
            "index": pa.array([row[2] for row in rows], pa.int64()),
            "score": pa.array([row[3] for row in rows], pa.float32()),
        }
    )


REAL = real_table(
    train=(10, 2, 8, 1, 3), validation=(2,) * 5, test=(3,) * 5, prior=(5, 4, 3, 2, 1), fresh=(0, 9, 0, 12, 0)
)
# Indices out of order, as shards of several machines come.
SAMPLES = sample_table(
    [("plain", 1, index, score) for index, score in ((3, 0.95), (0, 0.8), (2, 0.7), (1, 0.2), (4, 0.9))]
    + [("plain", 3, index, 0.8) for index in (2, 1, 0)]
    + [("ecc", 1, index, 0.85) for index in (1, 0)]
    + [("ecc", 3, index, 0.6) for index in (0, 1, 2, 3)]
)
GOOD = np.ones(len(SAMPLES), bool)


def taken(name, grade=1, seed=0, band=BAND, good=GOOD):
    kind, rows = supply(ARMS[name], grade, band, REAL, SAMPLES, good, seed)
    table = REAL if kind == "real" else SAMPLES
    return kind, table.take(rows)


@pytest.mark.parametrize(
    ("counts", "ratio", "grades", "expected"),
    [
        # Paper 9: N = round(r (max_h n(h) - n(g))).
        ((10, 2, 8, 1, 3), 1.0, (1, 3), [0, 8, 0, 9, 0]),
        ((10, 2, 8, 1, 3), 0.5, (1, 3), [0, 4, 0, 4, 0]),  # 4.5 to the even number
        ((10, 2, 8, 1, 3), 0.25, (3, 4), [0, 0, 0, 2, 2]),
        ((10, 2, 8, 1, 3), 2.0, (1,), [0, 16, 0, 0, 0]),
        ((10, 2, 8, 1, 3), 1.0, (0,), [0, 0, 0, 0, 0]),
        ((10, 2, 8, 1, 3), 0.0, (1, 3), [0, 0, 0, 0, 0]),
        ((10, 2, 8, 1, 3), 1.0, (), [0, 0, 0, 0, 0]),
    ],
)
def test_how_many_are_wanted(counts, ratio, grades, expected):
    assert wanted(np.array(counts), ratio, grades).tolist() == expected


def test_ratio_one_balances():
    counts = np.array([4386, 441, 3133, 165, 638])
    assert set((counts + wanted(counts, 1.0, range(5))).tolist()) == {4386}


def test_parts_are_the_official_splits():
    for part, count in (("train", 24), ("validation", 10), ("test", 15), ("prior", 15), ("fresh", 21)):
        rows = part_of(REAL, part, None)
        assert len(rows) == count
        assert set(REAL["split"].take(rows).to_pylist()) == {part}


def test_a_fold_pools_train_and_validation():
    for fold in range(3):
        train, validation = part_of(REAL, "train", fold), part_of(REAL, "validation", fold)
        assert sorted([*train, *validation]) == list(range(34))
        assert set(REAL["fold"].take(validation).to_pylist()) == {fold}
        assert fold not in REAL["fold"].take(train).to_pylist()
        # What else there is does not know folds.
        assert np.array_equal(part_of(REAL, "test", fold), part_of(REAL, "test", None))


def test_rows_without_a_fold_are_trained_on():
    table = REAL.set_column(REAL.column_names.index("fold"), "fold", pa.nulls(len(REAL), pa.int8()))
    assert len(part_of(table, "train", 0)) == 34
    assert len(part_of(table, "validation", 0)) == 0


def test_ungraded_photographs_are_in_no_part():
    grades = REAL["grade"].to_pylist()
    grades[0] = grades[30] = None
    table = REAL.set_column(REAL.column_names.index("grade"), "grade", pa.array(grades, pa.int8()))
    assert 0 not in part_of(table, "train", None)
    assert len(part_of(table, "train", 1)) + len(part_of(table, "validation", 1)) == 32
    assert counts_of(np.array([3, 3, 0])).tolist() == [1, 0, 0, 2, 0]


def test_what_may_be_used():
    samples = pa.table(
        {
            "blank": [False, True, False, False, False],
            "valid_fundus": [True, True, False, True, True],
            "nearest_distance": pa.array([0.5, 0.5, 0.5, 0.1, None], pa.float32()),
        }
    )
    assert usable(samples).tolist() == [True, False, False, True, True]
    assert usable(samples, memorised_below=0.3).tolist() == [True, False, False, False, True]
    assert usable(samples, memorised_below=0.5).tolist() == [True, False, False, False, True]


def test_naive_takes_all_by_index():
    kind, table = taken("naive")
    assert kind == "synthetic"
    assert table["index"].to_pylist() == [0, 1, 2, 3, 4]
    assert set(table["kind"].to_pylist()) == {"plain"}
    assert set(table["grade"].to_pylist()) == {1}


def test_the_band_is_inclusive_on_both_sides_in_single_precision():
    assert taken("band")[1]["index"].to_pylist() == [0, 2, 4]
    assert taken("band", band=(0.71, 0.89))[1]["index"].to_pylist() == [0]
    assert taken("ecc_band")[1]["index"].to_pylist() == [0, 1]
    assert len(taken("ecc_band", grade=3)[1]) == 0
    assert len(taken("ecc", grade=3)[1]) == 4


@pytest.mark.parametrize(
    ("name", "indices"), [("bin_low", [1]), ("bin_mid", []), ("bin_paper", [0, 2, 4]), ("bin_top", [3])]
)
def test_bins_have_bands_of_their_own(name, indices):
    assert taken(name, band=(0.0, 1.0))[1]["index"].to_pylist() == indices


def test_a_random_subset_knows_no_score():
    seeds = [taken("random_subset", seed=seed)[1]["index"].to_pylist() for seed in range(6)]
    assert all(sorted(indices) == [0, 1, 2, 3, 4] for indices in seeds)
    assert len({tuple(indices) for indices in seeds}) > 1
    assert taken("random_subset", seed=2)[1]["index"].to_pylist() == seeds[2]


def test_external_and_fresh_photographs_are_real():
    for name, split, count in (("external_real", "prior", 4), ("ceiling", "fresh", 9)):
        kind, table = taken(name)
        assert kind == "real"
        assert set(table["split"].to_pylist()) == {split}
        assert set(table["grade"].to_pylist()) == {1}
        assert len(table) == count


def test_what_may_not_be_used_is_not_supplied():
    good = GOOD.copy()
    good[1] = False  # index 0 of grade 1
    assert taken("naive", good=good)[1]["index"].to_pylist() == [1, 2, 3, 4]


def common(*arms, ratio=1.0, grades=(1, 3)):
    given, asked = common_counts(arms, ratio, grades, BAND, REAL, SAMPLES, GOOD, None)
    return given.tolist(), asked.tolist()


def test_the_poorest_arm_sets_the_number():
    # Wanted 8 and 9; plain has 5 and 3, in the band 3 and 3, ecc 2 and 4, fresh 9 and 12.
    assert common("real_only", "oversampling") == ([0, 8, 0, 9, 0], [0, 8, 0, 9, 0])
    assert common("ceiling") == ([0, 8, 0, 9, 0], [0, 8, 0, 9, 0])
    assert common("real_only", "naive", "ceiling") == ([0, 5, 0, 3, 0], [0, 8, 0, 9, 0])
    assert common("naive", "band", "ecc") == ([0, 2, 0, 3, 0], [0, 8, 0, 9, 0])
    assert common("ecc_band", "naive") == ([0, 2, 0, 0, 0], [0, 8, 0, 9, 0])
    assert common("naive", ratio=0.25) == ([0, 2, 0, 2, 0], [0, 2, 0, 2, 0])
    assert common("naive", grades=(3,)) == ([0, 0, 0, 3, 0], [0, 0, 0, 9, 0])


def rows_of(name, seed=0):
    given, asked = common_counts(("naive", "band", "ecc", "ceiling"), 1.0, (1, 3), BAND, REAL, SAMPLES, GOOD, None)
    return training_rows(name, given, asked, BAND, REAL, SAMPLES, GOOD, None, seed)


@pytest.mark.parametrize("name", ["naive", "band", "ecc", "random_subset"])
def test_every_arm_adds_equally_many(name):
    chosen = rows_of(name)
    assert chosen.added == (0, 2, 0, 3, 0)
    assert chosen.shortage == (0, 6, 0, 6, 0)
    assert np.array_equal(chosen.real_rows, part_of(REAL, "train", None))
    assert counts_of(np.asarray(SAMPLES["grade"])[chosen.synthetic_rows]).tolist() == [0, 2, 0, 3, 0]


def test_the_ceiling_adds_real_photographs():
    chosen = rows_of("ceiling")
    assert chosen.added == (0, 2, 0, 3, 0)
    assert len(chosen.synthetic_rows) == 0
    assert REAL["split"].take(chosen.real_rows).to_pylist().count("fresh") == 5


@pytest.mark.parametrize("name", ["real_only", "oversampling"])
def test_arms_that_add_nothing(name):
    chosen = rows_of(name)
    assert (chosen.added, chosen.shortage) == ((0,) * 5, (0,) * 5)
    assert len(chosen.real_rows) == 24
    assert len(chosen.synthetic_rows) == 0


def test_the_first_indices_win_and_the_random_ones_differ_by_seed():
    assert SAMPLES["index"].take(rows_of("band").synthetic_rows).to_pylist() == [0, 2, 0, 1, 2]
    draws = {
        tuple(SAMPLES["index"].take(rows_of("random_subset", seed).synthetic_rows).to_pylist()) for seed in range(8)
    }
    assert len(draws) > 1
    assert rows_of("band", seed=1).synthetic_rows.tolist() == rows_of("band", seed=2).synthetic_rows.tolist()


def test_no_arm_touches_validation_or_test():
    for name in ARMS:
        if ARMS[name].source not in CHANGES or ARMS[name].source == "plain":
            splits = REAL["split"].take(rows_of(name).real_rows).to_pylist()
            assert set(splits) <= {"train", "prior", "fresh"}


def test_with_a_fold_nothing_of_it_is_trained_on():
    given, asked = common_counts(("naive",), 1.0, (1,), BAND, REAL, SAMPLES, GOOD, 1)
    chosen = training_rows("naive", given, asked, BAND, REAL, SAMPLES, GOOD, 1, 0)
    assert not set(chosen.real_rows) & set(part_of(REAL, "validation", 1))
    pooled = counts_of(np.asarray(REAL["grade"])[part_of(REAL, "train", 1)])
    assert asked[1] == pooled.max() - pooled[1]


def test_an_unknown_arm_names_the_known_ones():
    with pytest.raises(UserError, match="no arm 'bandit': choose from real_only, oversampling"):
        selection.arm_named("bandit")


def test_no_samples_at_all():
    empty = SAMPLES.slice(0, 0)
    given, asked = common_counts(("naive", "band"), 1.0, (1, 3), BAND, REAL, empty, GOOD[:0], None)
    assert given.tolist() == [0] * 5
    chosen = training_rows("naive", given, asked, BAND, REAL, empty, GOOD[:0], None, 0)
    assert chosen.shortage == tuple(asked)


def all_good(samples):
    return np.ones(len(samples), bool)


TABLES = Tables(REAL, SAMPLES, GOOD, None)
MAIN = ("oversampling", "naive", "band")


def of_arms(*names, samples=SAMPLES, ratio=1.0):
    tables = Tables(REAL, samples, np.ones(len(samples), bool), None)
    found = counts_of_arms(names, ratio, (1, 3), BAND, tables)
    return {name: (given.tolist(), asked.tolist()) for name, (given, asked) in found.items()}


def test_bins_meet_at_their_edges_without_overlap():
    scores = [0.0, 0.4999, 0.5, 0.6999, 0.7, 0.9, 0.9001, 1.0]
    samples = sample_table([("plain", 1, index, score) for index, score in enumerate(scores)])
    found = [
        supply(ARMS[name], 1, BAND, REAL, samples, np.ones(8, bool), 0)[1].tolist()
        for name in ("bin_low", "bin_mid", "bin_paper", "bin_top")
    ]
    assert found == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_bins_get_equal_numbers_and_hold_no_other_arm_back():
    samples = sample_table(
        [("plain", 1, index, score) for index, score in enumerate([0.1] * 4 + [0.6] * 2 + [0.8] * 7 + [0.95] * 5)]
        + [("plain", 3, index, score) for index, score in enumerate([0.8] * 9 + [0.95] * 3)]
    )
    alone = of_arms(*MAIN, samples=samples)
    found = of_arms(*MAIN, "bin_low", "bin_mid", "bin_paper", "bin_top", samples=samples)
    assert {name: found[name] for name in MAIN} == alone
    assert alone["band"][0] == [0, 7, 0, 9, 0]
    # Grade 1: the poorest bin has 2. Grade 3: two bins are empty, the other two get 3 each.
    assert [found[name][0] for name in ("bin_low", "bin_mid", "bin_paper", "bin_top")] == [
        [0, 2, 0, 0, 0], [0, 2, 0, 0, 0], [0, 2, 0, 3, 0], [0, 2, 0, 3, 0],
    ]  # fmt: skip
    assert found["bin_low"][1] == [0, 8, 0, 9, 0]
    rows = training_rows("bin_low", *map(np.array, found["bin_low"]), BAND, REAL, samples, all_good(samples), None, 0)
    assert rows.shortage == (0, 6, 0, 9, 0)


def test_controls_take_the_common_number_and_hold_nobody_back():
    few = sample_table(
        [("plain", 1, k, 0.8) for k in range(6)] + [("plain", 3, k, 0.8) for k in range(6)]
        + [("ecc_w0", 1, 0, 0.5)] + [("ecc_w0", 3, k, 0.5) for k in range(20)]
        + [("plain", 4, k, 0.8) for k in range(3)] + [("plain", 2, k, 0.8) for k in range(9)]
    )  # fmt: skip
    found = of_arms(*MAIN, "ecc_w0", "vae_roundtrip", "all_grades", samples=few)
    assert found["band"] == ([0, 6, 0, 6, 0], [0, 8, 0, 9, 0])
    assert found["ecc_w0"] == ([0, 1, 0, 6, 0], [0, 8, 0, 9, 0])
    assert found["vae_roundtrip"] == ([0, 6, 0, 6, 0], [0, 8, 0, 9, 0])
    # Every grade below the most numerous one: 10 - (10, 2, 8, 1, 3); of grades 1 and 3 what `band` adds.
    assert found["all_grades"] == ([0, 6, 2, 6, 3], [0, 8, 2, 9, 7])
    assert found["oversampling"] == ([0] * 5, [0] * 5)


def test_a_count_of_ones_own_takes_the_place_of_the_ratio():
    found = counts_of_arms(("naive", "ecc_w0", "all_grades", "bin_paper", "ceiling"), 0.25, (1, 3), BAND, TABLES, 2)
    assert [given.tolist() for given, _ in found.values()] == [
        [0, 2, 0, 2, 0], [0] * 5, [0, 2, 0, 2, 0], [0, 2, 0, 2, 0], [0, 2, 0, 2, 0],
    ]  # fmt: skip
    assert [asked.tolist() for _, asked in found.values()] == [[0, 2, 0, 2, 0]] * 2 + [[2] * 5] + [[0, 2, 0, 2, 0]] * 2
    # More than the poorest arm has: all get what it has, and the shortage is stated.
    (given, asked), _ = counts_of_arms(("naive", "ceiling"), 1.0, (1, 3), BAND, TABLES, 5000).values()
    assert (given.tolist(), asked.tolist()) == ([0, 5, 0, 3, 0], [0, 5000, 0, 5000, 0])


def test_the_prior_sets_photographs_are_a_control():
    # Prior: 4 mild and 2 severe photographs; the main arms can give 6 of each, then 2.
    for number, reached in ((6, [0, 4, 0, 2, 0]), (2, [0, 2, 0, 2, 0])):
        samples = sample_table([("plain", grade, k, 0.8) for grade in (1, 3) for k in range(number)])
        found = of_arms(*MAIN, "ceiling", "external_real", samples=samples)
        assert [found[name][0] for name in ("naive", "band", "ceiling")] == [[0, number, 0, number, 0]] * 3
        assert found["external_real"] == (reached, [0, 8, 0, 9, 0])
        given = map(np.array, found["external_real"])
        rows = training_rows("external_real", *given, BAND, REAL, samples, all_good(samples), None, 0)
        assert (rows.added, rows.shortage) == (tuple(reached), tuple(np.subtract([0, 8, 0, 9, 0], reached)))
        assert REAL["split"].take(rows.real_rows).to_pylist().count("prior") == sum(reached)
    assert common("naive", "external_real") == common("naive")


def test_a_round_trip_repeats_the_training_photographs():
    chosen = training_rows(
        "vae_roundtrip", np.array([0, 5, 0, 2, 0]), np.array([0, 8, 0, 9, 0]), BAND, REAL, SAMPLES, GOOD, None, 0
    )
    mild, severe = (
        [row for row in part_of(REAL, "train", None) if REAL["grade"][row].as_py() == grade] for grade in (1, 3)
    )
    assert chosen.roundtrip_rows.tolist() == [mild[0], mild[1], mild[0], mild[1], mild[0], severe[0], severe[0]]
    assert (chosen.added, chosen.shortage) == ((0, 5, 0, 2, 0), (0, 3, 0, 7, 0))
    assert len(chosen.synthetic_rows) == 0
    assert np.array_equal(chosen.real_rows, part_of(REAL, "train", None))


def test_a_round_trip_stays_inside_the_fold():
    rows = supply(ARMS["vae_roundtrip"], 1, BAND, REAL, SAMPLES, GOOD, 0, 1)[1]
    assert len(rows)
    assert not set(rows) & set(part_of(REAL, "validation", 1))


def test_a_probe_sees_as_many_of_either_kind_and_none_twice():
    train, held = probe_counts("probe", (1, 3), BAND, TABLES)
    # Grade 1: 2 real and 5 made, 2 held out; grade 3: 1 real and 3 made, 2 held out.
    assert (train.tolist(), held.tolist()) == ([0, 2, 0, 1, 0], [0, 2, 0, 2, 0])
    rows = probe_rows("probe", train, held, BAND, TABLES)
    assert [len(part) for part in (rows.train_real, rows.train_other, rows.held_real, rows.held_other)] == [3, 3, 4, 4]
    assert not set(rows.train_other) & set(rows.held_other)
    assert set(REAL["split"].take(rows.train_real).to_pylist()) == {"train"}
    assert set(REAL["split"].take(rows.held_real).to_pylist()) == {"validation"}
    for real, other in ((rows.train_real, rows.train_other), (rows.held_real, rows.held_other)):
        assert sorted(REAL["grade"].take(real).to_pylist()) == sorted(SAMPLES["grade"].take(other).to_pylist())


def test_the_probe_of_a_round_trip_tells_different_photographs_apart():
    real = real_table(train=(10, 6, 8, 4, 3), validation=(4,) * 5, test=(3,) * 5)
    tables = Tables(real, SAMPLES, GOOD, None)
    train, held = probe_counts("probe_roundtrip", (1, 3), BAND, tables)
    assert (train.tolist(), held.tolist()) == ([0, 3, 0, 2, 0], [0, 2, 0, 2, 0])
    rows = probe_rows("probe_roundtrip", train, held, BAND, tables)
    parts = [rows.train_real, rows.train_other, rows.held_real, rows.held_other]
    assert len(set(np.concatenate(parts).tolist())) == sum(map(len, parts)) == 18
    assert rows.kind == "roundtrip"
