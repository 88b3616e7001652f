"""Scores: exact counts at the slider's stops, acceptance, verdicts, nearest pairs; the validation map; thumbnails."""

import base64
import io

import fake_run
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from raydr import schema, shards
from raydr.report import data, gallery, heatmap, page, samples


@pytest.fixture(scope="module")
def parts(single):
    return data.load(single[0], 1)


def brute(parts, kind, grade, low, high):
    rows = parts[0].samples.to_pylist()
    of_group = [row for row in rows if row["kind"] == kind and row["grade"] == grade and row["usable"]]
    return sum(np.float32(low) <= np.float32(row["score"]) <= np.float32(high) for row in of_group)


def test_counts_at_every_stop_are_exact(parts):
    for group in samples.score_counts(parts):
        for low, high in ((0, 1), (0.7, 0.9), (0.5, 0.51), (0.13, 0.97)):
            i, j = round(100 * low), round(100 * high)
            counted = group["at_or_below"][j] - group["below"][i]
            assert counted == brute(parts, group["kind"], group["grade"], low, high)
        assert group["made"] == 64


def test_a_score_on_the_edge_of_the_band_is_inside():
    # 0.7 as float32 is 0.699999988: it was stored as .7 and belongs to [.7, .9].
    import pyarrow as pa

    table = pa.table({"score": pa.array([0.7, 0.9, 0.90001], pa.float32())})
    values = samples.scores(table)
    assert values[0] >= 0.7
    assert values[1] <= 0.9
    assert values[2] > 0.9


def test_acceptance(parts):
    found = samples.acceptance(parts, (0.7, 0.9))
    row = found["plain-g1-0"]["1"]
    assert row["accepted"] == brute(parts, "plain", 1, 0.7, 0.9)
    assert row["share"] == row["accepted"] / 64
    table = parts[0].samples
    of_group = [r for r in table.to_pylist() if r["generator_id"] == "plain-g1-0"]
    assert row["memorised"] == sum(r["nearest_distance"] < 2 for r in of_group)
    assert row["unusable"] == sum(r["nearest_distance"] < 2 or r["blank"] for r in of_group)


def test_other_scorers_are_compared_on_the_same_images(tmp_path):
    run = fake_run.write_run(tmp_path / "run", num_samples=64, with_trials=False)
    assert samples.rescored(data.load(run, 1), (0.7, 0.9)) == []
    table = data.load(run, 1)[0].samples
    mine = [row for row in table.to_pylist() if row["generator_id"] == "ecc-g3-0"][:-1]  # one is not judged yet
    half = [row | {"ensemble_id": "e-0-audit", "score": row["score"] / 2 + 0.4} for row in reversed(mine)]
    gone = {"sample_id": "gone/g3/1", "ensemble_id": "e-0-audit", "probabilities": [[0.2] * 5], "score": 1.0}
    gone["disagreement"] = 0.0
    rows = [{name: row[name] for name in schema.SCORES.names} for row in [*half, gone]]
    key = "scores/e-0-audit/ecc-g3-0/g3-000000.parquet"
    shards.commit(run, key, pa.Table.from_pylist(rows, schema.SCORES), schema.SCORES, "s")
    (row,) = samples.rescored(data.load(run, 1), (0.7, 0.9))
    own = np.array([row["score"] for row in mine if row["usable"]])
    inside = (own >= 0.7) & (own <= 0.9)
    other = own / 2 + 0.4
    passed = (other >= 0.7) & (other <= 0.9)
    assert 0 < inside.sum() < len(own)
    assert (row["ensemble_id"], row["generator_id"], row["grade"]) == ("e-0-audit", "ecc-g3-0", 3)
    assert row["num_images"] == len(own)
    expected = {"share": passed.mean(), "own_share": inside.mean(), "mean_score": other.mean()}
    expected |= {"own_mean_score": own.mean(), "accepted_share": passed[inside].mean()}
    expected |= {"accepted_score": other[inside].mean(), "own_accepted_score": own[inside].mean()}
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, abs=1e-5), name
    text, _ = page.render(run, fake_run.recipe())
    assert "What other scorers say" in text
    assert "e-0-audit" in text


def test_verdict_matrices_count_the_ensembles_first_choice(parts):
    matrices = samples.verdict_matrices(parts)
    assert list(matrices) == ["plain", "ecc"]
    expected = np.zeros((5, 5), int)
    for row in parts[0].samples.to_pylist():
        if row["kind"] == "ecc":
            expected[row["grade"], np.mean(row["probabilities"], axis=0).argmax()] += 1
    assert np.array_equal(matrices["ecc"], expected)


def test_nearest_pairs_are_the_closest(parts):
    rows = samples.nearest(parts, 5)
    distances = np.sort(parts[0].samples["nearest_distance"].to_numpy())[:5]
    assert [row["nearest_distance"] for row in rows] == pytest.approx(distances)
    assert all(row["memorised"] == (row["nearest_distance"] < 2) for row in rows)


def test_map_holds_validation_means(parts):
    (found,) = heatmap.maps(parts)
    assert found["arm"] == "band"
    assert (len(found["bands"]), found["ratios"]) == (6, [0.25, 0.5, 1.0, 2.0])
    trial = next(
        t for t in parts[0].trials
        if t.row["purpose"] == "map" and t.row["ratio"] == 2 and t.row["band_high"] == pytest.approx(0.8)
    )  # fmt: skip
    verdicts, grades = trial.verdicts["validation"], parts[0].sets["validation"].grades
    recall = [(verdicts.predictions == g)[grades == g].mean() for g in range(5)]
    place = found["bands"].index((0.5, 0.8)), 3
    assert found["values"]["balanced_accuracy"][place] == pytest.approx(np.mean(recall))
    assert found["values"]["recall_3"][place] == pytest.approx(recall[3])
    assert found["num_trials"].tolist() == [[1] * 4] * 6
    # Where a band ran out the cell says how far it came.
    assert (found["added"].tolist(), found["wanted"].tolist()) == ([[50, 50, 50, 30]] * 6, [[50] * 4] * 6)
    base = [t for t in parts[0].trials if t.row["arm"] == "oversampling"]
    values = [
        np.mean([(t.verdicts["validation"].predictions == g)[grades == g].mean() for g in range(5)]) for t in base
    ]
    assert found["reference"]["balanced_accuracy"] == pytest.approx(np.mean(values))


def test_thumbnails_spread_over_the_scores():
    scores = np.concatenate([np.full(95, 0.95), [0.1, 0.3, 0.5, 0.6, 0.7]])
    picked = gallery._spread(scores, 10)
    assert len(picked) <= 10
    assert {95, 96} <= set(picked.tolist())  # the rare low scores are among them
    assert gallery._spread(np.array([0.5, 0.1]), 10).tolist() == [0, 1]


def test_pictures(parts):
    pairs = samples.nearest(parts)
    shown = gallery.pictures(parts, pairs, per_group=12)
    per_group = {}
    for item in shown["gallery"]:
        per_group.setdefault((item["kind"], item["grade"]), []).append(item["score"])
    assert set(per_group) == {("plain", 1), ("plain", 3), ("ecc", 1), ("ecc", 3)}
    assert all(6 <= len(scores) <= 12 and scores == sorted(scores, reverse=True) for scores in per_group.values())
    assert shown["num_samples"] == 256
    assert [strip["grade"] for strip in shown["strips"]] == [1, 3]
    for strip in shown["strips"]:
        assert strip["kind"] == "plain"
        for item in strip["items"]:
            mean = np.mean(item["p"], axis=0)
            others = [g for g in range(5) if g != item["grade"]]
            assert item["runner_up"] == max(others, key=lambda g: mean[g])
    data_uri = shown["gallery"][0]["src"]
    image = Image.open(io.BytesIO(base64.b64decode(data_uri.removeprefix("data:image/jpeg;base64,"))))
    assert image.size == (64, 64)
    assert len(shown["pairs"]) == 8


def test_the_gallery_keeps_its_weight(parts, monkeypatch):
    whole = gallery.pictures(parts, [], 24)["gallery"]
    monkeypatch.setattr(gallery, "MAX_BYTES", sum(len(item["src"]) for item in whole) // 3)
    thinned = gallery.pictures(parts, [], 24)["gallery"]
    assert len(whole) / 4 <= len(thinned) <= len(whole) / 2.5
    assert {item["grade"] for item in thinned} == {1, 3}


def test_addresses_hide_the_folders_above():
    from raydr.storage import Run

    assert gallery.address(Run("/home/somebody/secret/raydr-demo")) == "raydr-demo"
    assert gallery.address(Run("/home/somebody/run/replicate-2")) == "run/replicate-2"
    assert gallery.address(Run("s3://bucket/run")) == "s3://bucket/run"
