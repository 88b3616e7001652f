"""What other commands leave beside a run: read, ranked, shared out and shown."""

import dataclasses
import json
import shlex

import fake_run
import pytest
from test_page import Outline, visible

from raydr import cli, recipes
from raydr.report import data, extras, page, tables
from raydr.report.gallery import audit_pictures
from raydr.storage import Run


@pytest.fixture(scope="module")
def parts(single):
    run, recipe = single
    return data.load(run, recipe["num_replicates"])


def test_audit_pairs_that_need_a_decision_come_first(parts):
    found = extras.data_audit(parts)
    assert [pair["a"] for pair in found["pairs"]] == ["DDR/train-0-0002", "DDR/train-1-0000"]
    assert all(pair["worst"] for pair in found["pairs"])
    assert (found["num_leaks"], found["num_warnings"], found["num_pairs"]) == (1, 1, 2)
    shown = audit_pictures(parts, found)
    assert all(pair[f"{side}_src"].startswith("data:image/jpeg;base64,") for pair in shown for side in ("a", "b"))


def test_a_long_audit_is_cut_and_says_so(tmp_path):
    run = fake_run.write_run(tmp_path, num_seeds=1, num_test=4, num_samples=4)
    harmless = fake_run.PAIR | {"splits": ["train", "prior"], "grades": [1, 1], "b": "DDR/train-1-0001"}
    pairs = [harmless | {"a": f"DDR/gone-{k}"} for k in range(30)]
    leaks = [f"leak {k}" for k in range(25)]
    run.replace_json("report/audit.json", fake_run.AUDIT | {"duplicates": pairs, "leaks": leaks, "warnings": []})
    html, results = page.render(run, fake_run.recipe(num_seeds=1))
    found = results["data_audit"]
    assert len(found["pairs"]) == extras.MAX_PAIRS
    assert not any(pair["worst"] for pair in found["pairs"])
    assert len(found["leaks"]) == extras.MAX_SENTENCES
    shown = visible(html)
    assert "leak 19" in shown
    assert "leak 20" not in shown
    assert "5 more in report/audit.json" in shown
    assert "to be decided" not in shown
    Outline(html)


def test_without_an_audit_the_page_says_how_to_make_one(tmp_path):
    run = fake_run.write_run(tmp_path / "out", num_seeds=1, num_test=4, num_samples=4)
    run.delete("report/audit.json")
    html, results = page.render(run, fake_run.recipe(num_seeds=1))
    assert results["data_audit"] is None
    assert "raydr audit out" in visible(html)


def test_cost_is_shared_out_by_seconds_of_work(single):
    _, results = page.render(*single)
    assert results["cost"] == {
        "synthesize": {
            "node_seconds": 400.0,
            "gpu_seconds": 200.0,
            "cost": 0.3,
            "currency": "EUR",
            "checked": True,
        }
    }
    rows = [row for grades in results["acceptance"].values() for row in grades.values()]
    # Every fake shard took 30 s, so each of the four groups bears a quarter.
    for row in rows:
        assert row["cost_per_accepted"] == pytest.approx(0.3 / 4 / row["accepted"])


def test_cost_without_prices_is_not_shown(tmp_path):
    run = fake_run.write_run(tmp_path, num_seeds=1, num_test=4, num_samples=4)
    run.replace_json("logs/spend/synthesize-a.json", fake_run.SPENT | {"priced_seconds": 0.0, "cost": 0.0})
    html, results = page.render(run, fake_run.recipe(num_seeds=1))
    assert results["cost"]["synthesize"]["cost"] is None
    assert "cost per accepted one" not in visible(html)
    assert "3 min 20 s" in visible(html)  # GPU time is known all the same
    # Example prices are called so.
    run.replace_json("logs/spend/synthesize-a.json", fake_run.SPENT | {"checked": False})
    assert "at example prices" in visible(page.render(run, fake_run.recipe(num_seeds=1))[0])


def test_replicates_add_up(triple):
    _, results = page.render(*triple)
    assert results["cost"]["synthesize"]["node_seconds"] == pytest.approx(1200)
    assert results["cost"]["synthesize"]["cost"] == pytest.approx(0.9)


def test_quality_and_other_data_sets_are_shown_when_they_are_there(tmp_path):
    run = fake_run.write_run(tmp_path, num_seeds=1, num_test=4, num_samples=4)
    recipe = fake_run.recipe(num_seeds=1)
    before = page.render(run, recipe)[0]
    assert "external" not in Outline(before).ids
    assert "KID" not in visible(before)
    # As `raydr quality` and `raydr evaluate` write them.
    row = {"kind": "plain", "num_images": 1500, "kid": 0.0123, "kid_error": 0.004, "precision": 0.8, "recall": None}
    row |= {"in_band": {"kid": 0.009}, "reference": {"num_images": 4, "kid": None}}
    about = {"features": "graders (audit)", "band": [0.7, 0.9], "quality": {"plain-g1-0": {"1": row}}}
    run.replace_json(extras.QUALITY, about | {"format": 1})
    found = {"num_images": 103, "num_graders": 3, "balanced_accuracy": {"mean": 0.612, "std": 0.02}}
    over = {"difference": 0.034, "low": -0.01, "high": 0.08, "p": 0.2}
    found["num_excluded"] = 2
    found["strata"] = [
        {"stratum": name, "num_images": n, "balanced_accuracy": {"mean": share, "std": None}}
        for name, n, share in (("Brest", 40, 0.5), ("Paris", 63, 0.75))
    ]
    arms = {"band": found | {"over_baseline": over}, "oversampling": found | {"over_baseline": None}}
    run.replace_json(extras.EXTERNAL, {"<IDRiD>": arms})
    html, results = page.render(run, recipe)
    shown = visible(html)
    assert "plain-g1-0 mild 1,500 0.012 ± 0.004 0.800 — 0.009 —" in shown
    assert "features of graders (audit)" in shown
    assert "scores from 0.7 to 0.9 alone" in shown
    assert "density" not in shown
    assert "band 103 3 0.612 ± 0.020 +3.4 −1.0 to +8.0" in shown
    assert "oversampling 103 3 0.612 ± 0.020 —" in shown
    assert "<IDRiD> arm images graders balanced accuracy" in shown
    assert "arm Brest 40 images Paris 63 images band 50.0 75.0 oversampling 50.0 75.0" in shown
    assert "same picture as one that was learnt from: 2." in shown
    assert results["quality"]["plain-g1-0"]["1"] == row
    assert results["external"]["<IDRiD>"]["band"]["balanced_accuracy"]["mean"] == 0.612
    assert "external" in Outline(html).ids


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--finetune.steps", "12", "--synthesize.band", "0.5", "0.9", "--finetune.full", "--seed", "7"],
        ["--sweep.map-bands", "0.5", "0.8", "0.6", "1.0", "--sweep.arms", "band", "ecc", "--fold", "2"],
        ["--ingest.phantoms.0.counts", "9", "8", "7", "6", "5", "--ensemble.members.1.grader.px", "48"],
    ],
)
def test_the_commands_on_the_page_make_the_same_recipe(flags, tmp_path, capsys):
    def resolved(command):
        assert cli.main([*command, "--dry-run"]) == 0
        return json.JSONDecoder().raw_decode(capsys.readouterr().out.lstrip())[0]

    out = str(tmp_path / "out")
    asked = resolved(["run", "--recipe", "debug", "--out", out, *flags])
    made, *after = extras.commands(asked, out)
    words = shlex.split(made)
    assert words[:6] == ["raydr", "run", "--recipe", "debug", "--out", out]
    assert bool(words[6:]) == bool(flags)
    assert resolved(words[1:]) == asked
    assert after == [f"raydr verify {out}", f"raydr report {out}"]


def test_commands_of_a_recipe_on_photographs():
    recipe = tables.plain(dataclasses.asdict(recipes.ddr_sd15()))
    assert extras.commands(recipe, "out")[0] == "raydr ingest ddr PATH --recipe ddr_sd15 --out out"
    assert extras.commands(recipe | {"name": "mine"}, "out")[1] == "raydr run --recipe mine --out out"


def test_money():
    euros = {"currency": "EUR"}
    said = [page.money(euros, amount).replace("\u00a0", " ") for amount in (None, 0.0, 12.345, 0.1234, 0.00123)]
    assert said == ["—", "0.00 EUR", "12.35 EUR", "0.12 EUR", "0.0012 EUR"]


def test_quality_of_replicates_is_put_together(tmp_path):
    run = Run(str(tmp_path))
    parts = [dataclasses.make_dataclass("Part", ["run"])(run.child(f"replicate-{k}")) for k in range(2)]
    assert extras.quality(run, parts) == ({}, {})
    for part, name in zip(parts, "ab", strict=True):
        part.run.replace_json(extras.QUALITY, {"features": "f", "band": [0, 1], "quality": {name: {}}, "format": 1})
    assert extras.quality(run, parts) == ({"a": {}, "b": {}}, {"features": "f", "band": [0, 1]})
