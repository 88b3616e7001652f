"""How far a run is: rates from what was seen, quotas, trials by arm, and the live page that shows them."""

import dataclasses

import fake_run
import pytest
from test_page import Outline, visible

from raydr import lineage, schema, shards
from raydr.config import Recipe
from raydr.record import restore
from raydr.report import page, tables
from raydr.report.progress import Rates, group_of, progress
from raydr.storage import Run


def asked(**synthesize):
    recipe = restore(Recipe, tables.plain(fake_run.recipe()))
    return dataclasses.replace(recipe, synthesize=dataclasses.replace(recipe.synthesize, **synthesize))


def names(*counts):
    """Commit records of `counts` shards of two groups, and trials."""
    plain, ecc, trials = counts
    return [
        *(f"_commits/synthetic/plain-g1-a/g1-{k:06d}.json" for k in range(plain)),
        *(f"_commits/synthetic/ecc-g3-b/g3-{k:06d}.json" for k in range(ecc)),
        *(f"_commits/trials/results/t{k}.json" for k in range(trials)),
        *(f"_commits/trials/predictions/t{k}.json" for k in range(trials)),
        "_commits/real/DDR/000000.json",
    ]


def test_commit_records_are_counted_by_group():
    found = [group_of(name) for name in names(1, 1, 1)]
    assert found == ["plain-g1-a/g1", "ecc-g3-b/g3", "trials", None, None]


def test_rates_are_over_the_last_minutes():
    rates = Rates()
    assert rates.of("trials") is None
    rates.see(names(2, 0, 0), now=1000.0)
    rates.see(names(2, 0, 0), now=1005.0)
    assert rates.of("plain-g1-a/g1") is None  # five seconds tell nothing
    rates.see(names(6, 1, 3), now=1020.0)
    assert rates.of("plain-g1-a/g1") == pytest.approx(4 / 20)
    assert rates.of("ecc-g3-b/g3") == pytest.approx(1 / 20)
    assert rates.of("trials") == pytest.approx(3 / 20)
    # What is older than five minutes no longer counts: the pool that has died shows.
    rates.see(names(6, 1, 3), now=1310.0)
    assert rates.of("plain-g1-a/g1") == pytest.approx(0 / 290)


@pytest.fixture
def run(tmp_path):
    """A run of two shards of one group, of which 3 and 5 images were accepted, and 6 trials."""
    made = fake_run.write_run(tmp_path / "run", num_seeds=1, num_test=4, num_samples=8)
    table = shards.read(made, "synthetic/plain-g1-0", schema.SYNTHETIC)
    target = Run(str(tmp_path / "other"))
    for number, accepted in enumerate((3, 5)):
        key = lineage.shard_key("plain-g1-0", 1, number)
        extra = {"accepted": accepted, "seconds": 4.0, "threshold": 2.0}
        shards.commit(target, key, table, schema.SYNTHETIC, "synthetic", extra)
    shards.quarantine(target, "synthetic", "synthetic/plain-g1-0/g1-000002.parquet", "crashed", "three times")
    target.replace_json("recipe.json", {"begun": ["ingest", "synthesize"]})
    target.replace_json("logs/stage-ingest.json", {})
    return target


def test_a_count_and_a_quota(run):
    rates = Rates()
    rates.see(names(0, 0, 0), now=0.0)
    rates.see([f"_commits/synthetic/plain-g1-0/g1-{k:06d}.json" for k in range(2)], now=16.0)
    recipe = asked(count=32, shard_size=16, sampler=dataclasses.replace(asked().synthesize.sampler, batch=8))
    (row,) = progress(recipe, run, rates, [])["quotas"]
    assert (row["made"], row["accepted"], row["wanted"], row["of"]) == (16, 8, 32, "images")
    assert row["share"] == 0.5
    assert row["images_per_second"] == pytest.approx(2 * 16 / 16)
    assert row["quarantined"] == 1
    (row,) = progress(asked(accepted=10), run, Rates(), [])["quotas"]
    assert (row["done"], row["wanted"], row["of"], row["share"]) == (8, 10, "in the band", 0.8)
    assert row["images_per_second"] is None


def test_stages_and_trials(run):
    rows = [{"arm": "band", "purpose": "arm"}] * 2 + [{"arm": "band", "purpose": "map"}]
    found = progress(asked(), run, Rates(), rows)
    states = {row["stage"]: row["state"] for row in found["stages"]}
    assert states == {
        "ingest": "finished",
        "ensemble": "to come",
        "finetune": "to come",
        "synthesize": "running",
        "sweep": "to come",
    }
    arms = {row["arm"]: (row["done"], row["wanted"]) for row in found["arms"]}
    assert arms["band"] == (2, 3)
    assert arms["naive"] == (0, 3)
    cells = len(fake_run.BANDS) * len(fake_run.RATIOS)
    assert found["trials"] == {"done": 3, "wanted": 6 * 3 + cells, "rate": None}


def test_the_live_page_shows_it_and_the_written_one_does_not(run):
    recipe = fake_run.recipe()
    html, _ = page.render(run, recipe, Rates())
    assert "progress" in Outline(html).ids
    shown = visible(html)
    assert "synthesize running" in shown
    assert "0 of 42 trials have ended" in shown
    assert "progress" not in Outline(page.render(run, recipe)[0]).ids
    # What a recipe of another version asks for is not known: the rest of the page is shown.
    odd = recipe | {"report": recipe["report"] | {"fonts": 3}}
    assert "progress" not in Outline(page.render(run, odd, Rates())[0]).ids
