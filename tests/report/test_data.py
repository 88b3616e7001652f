"""Reading a run: order, splits, gates, and what is refused."""

import fake_run
import numpy as np
import pyarrow as pa
import pytest

from raydr import schema, shards
from raydr.errors import DamagedData
from raydr.report import data
from raydr.storage import Run


def test_verdicts_follow_the_photographs(single):
    run, _ = single
    (part,) = data.load(run, 1)
    assert len(part.sets["test"].image_ids) == 200
    assert part.sets["test"].image_ids.tolist() == sorted(part.sets["test"].image_ids)
    trial = part.trials[0]
    trial_id = trial.row["trial_id"]
    stored = shards.read(run, "trials/predictions", schema.PREDICTIONS)
    rows = {
        row["image_id"]: row for row in stored.to_pylist() if row["trial_id"] == trial_id and row["split"] == "test"
    }
    for position in (0, 77, 199):
        row = rows[part.sets["test"].image_ids[position]]
        assert trial.verdicts["test"].predictions[position] == row["prediction"]
        assert trial.verdicts["test"].probabilities[position] == pytest.approx(row["probabilities"])
        assert part.sets["test"].grades[position] == row["grade"]
    assert {name for t in part.trials if t.row["purpose"] == "map" for name in t.verdicts} == {"validation"}


def test_columns_of_test_photographs_come_in_their_order(single):
    (part,) = data.load(single[0], 1)
    assert part.of_test("sha256").tolist() == [f"0/{name}" for name in part.sets["test"].image_ids]
    assert part.of_test("patient_id").tolist() == [None] * 200


def test_gates(single):
    # The fake run: threshold 2.0 in the commit records, index 5 of each group blank.
    (part,) = data.load(single[0], 1)
    distance = part.samples["nearest_distance"].to_numpy()
    memorised = part.samples["memorised"].to_numpy()
    assert np.array_equal(memorised, distance < 2.0)
    assert memorised.any()
    blank = part.samples["blank"].to_numpy()
    assert blank.sum() == 4
    assert np.array_equal(part.samples["usable"].to_numpy(), ~(memorised | blank))


def test_without_a_threshold_nothing_is_memorised(tmp_path):
    run = Run(str(tmp_path))
    row = dict.fromkeys(schema.SYNTHETIC.names)
    row |= {
        "sample_id": "a",
        "generator_id": "plain-g1",
        "kind": "plain",
        "grade": 1,
        "index": 0,
        "nearest_distance": 0.0,
    }
    row |= {"probabilities": [[0.2] * 5], "score": 0.2}
    table = pa.Table.from_pylist([row], schema.SYNTHETIC)
    shards.commit(run, "synthetic/plain-g1/g1-000000.parquet", table, schema.SYNTHETIC, "f")
    (part,) = data.load(run, 1)
    assert part.samples["usable"].to_pylist() == [True]  # blank and valid_fundus null count as fine


def test_replicates_are_read_from_their_children(triple):
    run, _ = triple
    parts = data.load(run, 3)
    assert [part.replicate for part in parts] == [0, 1, 2]
    assert parts[1].run.url.endswith("/replicate-1")
    # Equal ids, other photographs: each replicate has a cohort of its own.
    assert np.array_equal(parts[0].sets["test"].image_ids, parts[1].sets["test"].image_ids)
    assert not np.array_equal(parts[0].of_test("sha256"), parts[1].of_test("sha256"))


def test_an_empty_run_has_no_parts(tmp_path):
    assert data.load(Run(str(tmp_path)), 1) == []
    assert data.load(Run(str(tmp_path)), 3) == []


def test_trials_on_other_photographs_are_refused(tmp_path):
    run = fake_run.write_run(tmp_path, num_seeds=1, num_test=4, with_synthetic=False)
    table = pa.table(
        {
            "trial_id": ["stranger"],
            "split": ["test"],
            "image_id": ["elsewhere/1"],
            "grade": pa.array([1], pa.int8()),
            "prediction": pa.array([1], pa.int8()),
            "probabilities": [[0.0, 1.0, 0.0, 0.0, 0.0]],
        }
    )
    shards.commit(run, "trials/predictions/stranger.parquet", table.cast(schema.PREDICTIONS), schema.PREDICTIONS, "f")
    with pytest.raises(DamagedData, match=r"stranger .* other test photographs"):
        data.load(run, 1)
