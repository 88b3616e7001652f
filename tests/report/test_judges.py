"""Other judges by score bin, tempered scores, and the band that is offered where the recipe's is nearly empty."""

import fake_run
import numpy as np
import pyarrow as pa
import pytest
from scipy.special import softmax
from test_page import visible

from raydr import schema, shards
from raydr.report import data, judges, page, samples

BAND = (0.7, 0.9)


@pytest.fixture
def run(tmp_path):
    return fake_run.write_run(tmp_path / "run", num_samples=64, with_trials=False)


def judge(run, ensemble_id, verdict_of):
    """Scores of another ensemble, of two members whose mean puts `verdict_of(row)` first."""
    rows = []
    for row in data.load(run, 1)[0].samples.to_pylist():
        first = np.full(5, 0.1) + 0.5 * np.eye(5)[verdict_of(row)]
        said = [first.tolist(), [0.2] * 5]
        rows.append({"sample_id": row["sample_id"], "ensemble_id": ensemble_id, "probabilities": said, "score": 0.3})
    key = f"scores/{ensemble_id}/all.parquet"
    shards.commit(run, key, pa.Table.from_pylist(rows, schema.SCORES), schema.SCORES, "s")


def test_the_share_of_intended_grades_is_counted_in_each_score_bin(run):
    assert judges.audited(data.load(run, 1)) == []
    # An oracle that sees the intended grade wherever the score is at least .7.
    judge(run, "i-oracle", lambda row: row["grade"] if row["score"] >= 0.7 else 0)
    for number, accuracy in enumerate((0.98, 0.99)):
        record = {"name": "oracle", "role": "score", "temperature": 1.0, "validation": {"balanced_accuracy": accuracy}}
        run.replace_json(f"imported/i-oracle/{number}/grader.json", record)
    rows = judges.audited(data.load(run, 1))
    assert [(row["kind"], row["grade"]) for row in rows] == [("ecc", 1), ("ecc", 3), ("plain", 1), ("plain", 3)]
    table = data.load(run, 1)[0].samples.to_pylist()
    for row in rows:
        own = [r["score"] for r in table if (r["kind"], r["grade"]) == (row["kind"], row["grade"]) and r["usable"]]
        counts = np.histogram(own, [0, 0.5, 0.7, 0.9, 1.01])[0].tolist()
        assert [one["num_images"] for one in row["bins"]] == counts
        assert [one["num_right"] for one in row["bins"]] == [0, 0, *counts[2:]]
        assert row["held_out"] == pytest.approx(0.985)
    html, found = page.render(run, fake_run.recipe())
    assert found["audited"] == rows
    shown = visible(html)
    assert "Does a score say what an image shows?" in shown
    first = rows[0]["bins"]
    assert f"i-oracle 98.5 % ecc mild 0 % {first[0]['num_images']}" in shown.replace("\u00a0", " ")


def test_bins_meet_as_those_of_the_arms_do(run, monkeypatch):
    edges = np.array([0.0, 0.5, 0.7, 0.9, 0.9000011, 1.0])
    monkeypatch.setattr(judges, "scores", lambda table: np.resize(edges, table.num_rows))
    judge(run, "i-all", lambda row: row["grade"])
    part = data.load(run, 1)[0]
    (count,) = {len(rows) for rows in samples.groups(part.samples, "kind", "grade").values()}
    total = sum(one["num_images"] for row in judges.audited([part]) for one in row["bins"])
    assert total == int(samples.usable(part.samples).sum())
    assert count == 64


def test_own_members_are_found_by_role(run):
    part = data.load(run, 1)[0]
    assert judges.held_out(part, "e-0") == pytest.approx(np.mean([0.8, 0.81, 0.82]))
    assert judges.held_out(part, "e-0-audit") == pytest.approx(0.83)
    assert judges.held_out(part, "nobody") is None


def test_tempered_scores_divide_each_members_logits(run):
    parts = data.load(run, 1)
    found = samples.acceptance(parts, BAND)
    judges.add_to(found, parts, BAND)
    row = found["plain-g3-0"]["3"]
    table = parts[0].samples.filter(pa.compute.equal(parts[0].samples["generator_id"], "plain-g3-0"))
    said = samples.probabilities(table).astype(float)
    expected = np.mean([softmax(np.log(said[:, m]) / (1.1 + m / 10), axis=1)[:, 3] for m in range(3)], axis=0)
    inside = (expected >= 0.7) & (expected <= 0.9) & samples.usable(table)
    assert row["tempered_mean"] == pytest.approx(expected.mean(), abs=1e-5)
    assert row["tempered_share"] == pytest.approx(inside.mean())
    assert row["tempered_mean"] < row["mean_score"]
    assert "quantile_band" not in row


def test_a_nearly_empty_band_is_said_and_another_offered(run):
    empty = fake_run.recipe()
    empty["sweep"]["band"] = [0.9999, 1.0]
    html, found = page.render(run, empty)
    assert found["acceptance"]["ecc-g3-0"]["3"]["share"] < 0.02
    assert "ecc-g3-0 hardly reaches the band:" in visible(html)
    assert "percentile" not in visible(html).split("Acceptance")[1].split("Closest")[0]
    told = {"score_q10_3": 0.4, "score_q90_3": 0.8}
    run.replace_json("logs/stage-ensemble.json", {"summary": {"ensemble": told}})
    html, found = page.render(run, empty)
    row = found["acceptance"]["ecc-g3-0"]["3"]
    part = data.load(run, 1)[0]
    own = [r["score"] for r in part.samples.to_pylist() if r["generator_id"] == "ecc-g3-0" and r["usable"]]
    assert row["quantile_band"] == [0.4, 0.8]
    assert row["quantile_accepted"] == sum(0.4 <= score <= 0.8 for score in own)
    assert "quantile_band" not in found["acceptance"]["ecc-g1-0"]["1"]
    assert f"0.40 to 0.80, lie {row['quantile_accepted']} of 64" in visible(html)
