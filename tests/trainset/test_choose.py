import os
import time

import numpy as np
import pyarrow as pa
import pytest

from raydr import selection, shards
from raydr.errors import DamagedData, MissingInput, UserError
from raydr.schema import REAL, SYNTHETIC
from raydr.storage import Run
from raydr.trainset.choose import Request, choose

from .tables import spoil_images, write_many, write_real, write_samples, write_scores

BAND = (0.7, 0.9)
PLAIN1, PLAIN3 = "plain-g1-a", "plain-g3-b"


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch):
    """Writing 313 shards to a busy disk takes 20 s otherwise."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def run(tmp_path):
    """Ten photographs of grade 0, eight of 2, so that grade 1 lacks 8 and grade 3 lacks 9."""
    target = Run(tmp_path / "out")
    write_real(target, (10, 2, 8, 1, 3))
    write_real(target, (2,) * 5, "test")
    return target


def request(**changes):
    return Request(**({"band": BAND, "ratio": 1.0, "grades": (1, 3)} | changes))


def by_grade(choice):
    return {count.grade: count for count in choice.counts}


def test_band_counts_and_order(run):
    # Shard 1 is committed before shard 0: samples still come by index.
    write_samples(run, PLAIN1, 1, [0.8, 0.95, 0.7, 0.9], 1)
    write_samples(run, PLAIN1, 1, [0.2, 0.75, 0.69, 0.9], 0)
    write_samples(run, PLAIN3, 3, [0.8] * 12)
    write_samples(run, "ecc-g1-c", 1, [0.8] * 4)
    choice = choose(run, request(), None)
    assert choice.real.num_rows == 24
    assert set(choice.real["split"].to_pylist()) == {"train"}
    assert choice.synthetic["sample_id"].to_pylist() == [
        *(f"{PLAIN1}/g1/{index}" for index in (1, 3, 4, 6, 7)),
        *(f"{PLAIN3}/g3/{index}" for index in range(9)),
    ]
    assert choice.synthetic["shard"].to_pylist()[:3] == [
        f"synthetic/{PLAIN1}/g1-000000.parquet",
        f"synthetic/{PLAIN1}/g1-000000.parquet",
        f"synthetic/{PLAIN1}/g1-000001.parquet",
    ]
    mild, severe = by_grade(choice)[1], by_grade(choice)[3]
    assert (mild.num_real, mild.num_wanted, mild.num_scored, mild.num_in_band, mild.num_added) == (2, 8, 8, 5, 5)
    assert (mild.shortage, severe.shortage) == (3, 0)
    assert (severe.num_wanted, severe.num_in_band, severe.num_added) == (9, 12, 9)
    assert by_grade(choice)[0].num_wanted == by_grade(choice)[0].num_scored == 0
    assert choice.generators == {PLAIN1: 0.5, PLAIN3: 0.5}


def test_memorised_blank_and_no_fundus_are_left_out_and_counted(run):
    near = pa.array([0.4, 1.0, 1.0, 1.0, 0.4, None], pa.float32())
    write_samples(
        run,
        PLAIN1,
        1,
        [0.8] * 6,
        nearest_distance=near,
        blank=[False, True, False, False, True, False],
        valid_fundus=[True, True, False, True, True, True],
    )
    count = by_grade(choice := choose(run, request(), None))[1]
    assert [count.num_in_band, count.num_memorised, count.num_unusable, count.num_added] == [6, 1, 3, 2]
    assert choice.synthetic["index"].to_pylist() == [3, 5]


def test_it_takes_what_the_sweep_would_take(run):
    rng = np.random.default_rng(5)
    for number in range(3):
        write_samples(run, PLAIN1, 1, rng.random(16), number)
    choice = choose(run, request(ratio=0.5), None)
    real = shards.read(run, "real", REAL, ["image_id", "split", "fold", "grade"])
    columns = ["sample_id", "kind", "grade", "index", "blank", "valid_fundus", "nearest_distance", "score"]
    samples = shards.read(run, "synthetic", SYNTHETIC, columns)
    asked = selection.wanted(np.array([10, 2, 8, 1, 3]), 0.5, (1, 3))
    rows = selection.training_rows(
        "band", asked, asked, BAND, real, samples, selection.usable(samples, 0.5), None, 0
    ).synthetic_rows
    assert choice.synthetic["sample_id"].to_pylist() == samples["sample_id"].take(rows).to_pylist()


def test_folds_pool_the_official_splits(tmp_path):
    run = Run(tmp_path)
    write_real(run, (4, 1, 4, 1, 1), "train", fold=0)
    write_real(run, (3, 1, 3, 1, 1), "validation", fold=1)
    write_samples(run, PLAIN1, 1, [0.8] * 8)
    for fold, split, count in ((1, "train", 11), (0, "validation", 9)):
        real = choose(run, request(grades=(1,)), fold).real
        assert (real.num_rows, set(real["split"].to_pylist())) == (count, {split})


def test_scores_of_another_ensemble(run):
    write_samples(run, PLAIN1, 1, [0.8, 0.8, 0.1, 0.1], 0)
    write_samples(run, PLAIN1, 1, [0.8, 0.8, 0.1, 0.1], 1)
    write_scores(run, "e-2", PLAIN1, 1, [0.1, 0.75, 0.85, 0.3], 0)
    with pytest.raises(MissingInput, match=r"scores/e-2 .* lacks 1 of 2 shards"):
        choose(run, request(ensemble_id="e-2"), None)
    write_scores(run, "e-2", PLAIN1, 1, [0.0, 0.0, 0.0, 0.9], 1)
    choice = choose(run, request(ensemble_id="e-2"), None)
    assert choice.synthetic["index"].to_pylist() == [1, 2, 7]
    assert choice.synthetic["score"].to_pylist() == pytest.approx([0.75, 0.85, 0.9])


def test_no_image_byte_is_touched(run):
    write_many(run, 256)
    before = choose(run, request(), None)
    assert spoil_images(run, "synthetic") > 1000
    assert spoil_images(run, "real") > 1000
    with pytest.raises(DamagedData):  # so the check can fail
        shards.read(run, "synthetic", SYNTHETIC)
    after = choose(run, request(), None)
    assert after.synthetic.equals(before.synthetic)
    assert after.real.equals(before.real)


def test_shards_outside_the_band_and_of_other_grades_are_passed_over(run, monkeypatch):
    """Their data pages are gone: only the footer, which has the statistics, may be read."""
    write_samples(run, PLAIN1, 1, [0.1, 0.2, 0.3], 0)
    write_samples(run, PLAIN1, 1, [0.8, 0.1, 0.95], 1)
    write_samples(run, "plain-g2-c", 2, [0.8] * 3)
    for key in (f"synthetic/{PLAIN1}/g1-000000.parquet", "synthetic/plain-g2-c/g2-000000.parquet"):
        path = run.path(key)
        data = path.read_bytes()
        footer = int.from_bytes(data[-8:-4], "little") + 8
        path.write_bytes(b"\xff" * (len(data) - footer) + data[-footer:])
    assert choose(run, request(), None).synthetic["index"].to_pylist() == [3]
    with pytest.raises(DamagedData, match=r"g1-000000\.parquet"):
        choose(run, request(band=(0.2, 0.9)), None)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"band": (0.9, 0.7)}, "0 <= LOW < HIGH <= 1, not 0.9 0.7"),
        ({"band": (0.5, 1.5)}, "--band must"),
        ({"ratio": 0.0}, "--ratio must be above 0"),
        ({"ratio": float("nan")}, "--ratio"),
        ({"grades": (5,)}, "grades from 0 to 4"),
        ({"grades": ()}, "grades from 0 to 4"),
    ],
)
def test_requests_that_make_no_sense(changes, told):
    with pytest.raises(UserError, match=told):
        request(**changes)


def test_nothing_chosen_is_an_error(run):
    with pytest.raises(MissingInput, match="run `raydr synthesize` first"):
        choose(run, request(), None)
    write_samples(run, PLAIN1, 1, [0.1, 0.95, 0.5])
    with pytest.raises(UserError, match=r"None of 3 plain images of grades 1, 3 .* \[0.7, 0.9\] \(0 there are"):
        choose(run, request(), None)
    with pytest.raises(UserError, match="Nothing is wanted for grades 0"):
        choose(run, request(grades=(0,)), None)
    with pytest.raises(UserError, match="no images of --kind ecc: it has plain"):
        choose(run, request(kind="ecc"), None)
    with pytest.raises(MissingInput, match=r"no committed real|no graded training"):
        choose(Run(run.url + "-2"), request(), None)


def test_two_generators_of_a_grade_must_be_told_apart(run):
    write_samples(run, PLAIN1, 1, [0.8] * 3)
    write_samples(run, "plain-g1-z", 1, [0.8] * 2)
    with pytest.raises(UserError, match="Grade 1 has images of plain-g1-a and plain-g1-z: pick one"):
        choose(run, request(), None)
    choice = choose(run, request(generators=("plain-g1-z",)), None)
    assert set(choice.synthetic["generator_id"].to_pylist()) == {"plain-g1-z"}
    assert choice.synthetic.num_rows == 2
    with pytest.raises(UserError, match="holds no image of plain-g1-q"):
        choose(run, request(generators=("plain-g1-q",)), None)
    with pytest.raises(UserError, match="no generator of --kind ecc"):
        choose(run, request(generators=(PLAIN1,), kind="ecc"), None)


def quickest(run, clock):
    """Least of five, seconds: other processes only add."""
    spent = []
    for _ in range(5):
        start = clock()
        choose(run, request(), None)
        spent.append(clock() - start)
    return min(spent)


def test_twenty_thousand_rows_at_once(run):
    write_many(run, 20_000)
    assert quickest(run, time.process_time) < 0.5  # of one core: a shared machine waits for the other tests too


@pytest.mark.slow
def test_a_hundred_thousand_rows_at_once(run):
    write_many(run, 100_000)
    # Seconds of one core, which four threads share; a busy machine adds to them.
    assert quickest(run, time.process_time) < 1.2
