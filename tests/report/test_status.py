"""What `raydr status` says of synthetic images, on records written by hand."""

import dataclasses

import pyarrow as pa
import pytest

from raydr import cli, plan, recipes, schema, shards, spending
from raydr.identity import as_dict
from raydr.report import status
from raydr.storage import Run

NAMES = [f"synthetic/plain-g1-a/g1-{number:06d}.parquet" for number in range(4)]


def commit(run, key, accepted, node, seconds, rows=8):
    columns = {field.name: pa.nulls(rows, field.type) for field in schema.SYNTHETIC}
    extra = {"accepted": accepted, "band": [0.0, 1.0], "seconds": seconds, "node": node, "host": "spot-1"}
    shards.commit(run, key, pa.table(columns, schema.SYNTHETIC), schema.SYNTHETIC, "f", extra)


@pytest.fixture
def run(tmp_path):
    """Three shards of a quota of 10 with 4 images in band, one quarantined, one crash; 6 USD for 24 images."""
    run = Run(str(tmp_path / "out"))
    for key, accepted, node in zip(NAMES, (1, 3, 0), ("n1", "n1", "n2"), strict=False):
        commit(run, key, accepted, node, 4.0)
    shards.quarantine(run, "synthetic", NAMES[3], "crashed", "its process ended")
    shards.quarantine(run, "synthetic", "plain-g1-a/g1/3", "raised", "RuntimeError")
    shards.quarantine(run, "synthetic", "ecc-g1-b/g1/3", "raised", "another generator's")
    for label in ("q.0.n1.a", "q.0.n1.b", "q.1.n2.c", "q.1.n2.d", "waived.c"):
        shards.record_start(run, NAMES[0] if ".0." in label else NAMES[1], label)
    spending.keep(run, "synthesize", "q", spending.Spend(60, 60, 0, 60, 6.0, "USD", True, 24))
    return run


@pytest.fixture
def recipe():
    base = recipes.named("debug")
    return dataclasses.replace(base, synthesize=dataclasses.replace(base.synthesize, accepted=10, max_images=400))


def test_what_is_there_and_what_is_to_go(run, recipe):
    """6 more in band at 4 in 3 shards are 5 shards of 8 at .25 USD an image."""
    assert status.rows(run, recipe) == [
        ["plain-g1-a", "1", "24", "4", "16.7%", "0.50", "40", "10.00 USD", "2"]
    ]  # fmt: skip
    assert len(status.COLUMNS) == len(status.rows(run, recipe)[0])


def test_nothing_is_promised_that_was_not_measured(run, recipe):
    run.delete("logs/spend/synthesize-q.json")
    wide = dataclasses.replace(recipe, synthesize=dataclasses.replace(recipe.synthesize, accepted=0))
    assert status.rows(run, wide)[0][-3:] == ["0", "unmeasured", "2"]
    bare = Run(run.url + "-none")
    commit(bare, NAMES[0], 0, "n1", 4.0)
    assert status.rows(bare, recipe)[0][-3:] == ["unknown", "unmeasured", "0"]


def test_nodes_with_their_rates_and_crashes(run, recipe):
    assert status.node_rows(run, recipe) == [
        ["spot-1 n1", "2", "16", "2.00", "1"],
        ["spot-1 n2", "1", "8", "2.00", "0"],
    ]


def test_the_command_and_the_plan_say_so(run, recipe, capsys, monkeypatch):
    monkeypatch.setattr("raydr.terminal.console.width", 200)
    run.replace_json("recipe.json", {"recipe": as_dict(recipe)})
    assert cli.main(["status", run.url]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "10.00 USD" in said
    assert "spot-1 n1" in said
    # Four targets of one shard each: 8 of the 32 images are left over after 24.
    row = next(row for row in plan.describe(recipe, run) if row.stage == "synthesize")
    assert row.cost == "60 s, 6.00 USD, about 2.00 USD more"
    assert next(row for row in plan.describe(recipe, run) if row.stage == "sweep").cost == "unmeasured"
