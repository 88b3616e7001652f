import dataclasses

import pyarrow as pa
import pytest

from raydr import recipes, schema, shapes, shards
from raydr.errors import UserError
from raydr.plan import check, describe
from raydr.storage import Run

DEMO = recipes.named("demo")


def changed(recipe=DEMO, **stages):
    return dataclasses.replace(
        recipe, **{name: dataclasses.replace(getattr(recipe, name), **fields) for name, fields in stages.items()}
    )


def works(recipe, tmp_path):
    return {row.stage: (row.work, row.done, row.cost) for row in describe(recipe, Run(tmp_path))}


def test_the_plan_of_an_empty_folder(tmp_path):
    recipe = changed(
        recipes.named("debug"),
        finetune={"grades": (1, 3), "kinds": ("plain", "ecc"), "steps": 10, "ecc_start": 4},
        synthesize={"count": 9},
        sweep={"arms": ("real_only", "band"), "num_seeds": 3, "map_bands": ((0.5, 1.0),) * 2, "map_ratios": (0.5,)},
    )
    assert works(recipe, tmp_path) == {
        "ingest": ("172 phantoms", "0", "unmeasured"),
        "ensemble": ("3 graders", "0", "unmeasured"),
        # Two grades of 10 plain steps, and ECC's last 6.
        "finetune": ("4 generators, 32 steps", "0", "unmeasured"),
        # 9 in whole shards of 8, for 2 kinds of 2 grades.
        "synthesize": ("64 images", "0", "unmeasured"),
        "sweep": ("8 trials of 6 steps", "0", "unmeasured"),
    }
    assert not list(tmp_path.iterdir()), "looking writes nothing"


def test_ecc_without_plain_takes_all_its_steps(tmp_path):
    recipe = changed(finetune={"kinds": ("ecc",), "steps": 80, "ecc_start": 40})
    assert works(recipe, tmp_path)["finetune"][0] == "2 generators, 160 steps"


def test_a_joint_generator_makes_all_grades(tmp_path):
    recipe = changed(finetune={"joint": True}, synthesize={"count": 32, "accepted": 10})
    assert works(recipe, tmp_path)["finetune"][0].startswith("2 generators")
    assert works(recipe, tmp_path)["synthesize"][0] == "320 images, then to 10 in band each"


def test_replicates_are_counted(tmp_path):
    assert all("x 3 replicates" in row.work for row in describe(recipes.named("phantom"), Run(tmp_path)))


def test_measured_seconds_are_the_cost(tmp_path):
    Run(tmp_path).replace_json("logs/stages.json", {"ingest": {"seconds": 12.4}, "sweep": {"seconds": 3.0}})
    found = works(DEMO, tmp_path)
    assert [found[stage][2] for stage in ("ingest", "ensemble", "sweep")] == ["12 s", "unmeasured", "3 s"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sweep": {"arms": ("real_only", "bandit")}}, "no arm 'bandit'"),
        ({"finetune": {"kinds": ("plain",)}}, "ecc takes ecc images, and finetune.kinds is"),
        ({"finetune": {"grades": (1,)}}, r"sweep.grades \(1, 3\).*finetune.grades trains \(1,\) alone"),
        ({"sweep": {"grades": (1, 4)}}, r"sweep.grades \(1, 4\)"),
        ({"ingest": {"phantoms": DEMO.ingest.phantoms[:-1]}}, "ceiling takes fresh photographs.*no grade 1"),
    ],
)
def test_a_sweep_that_cannot_be_served_is_refused_at_once(fields, words):
    with pytest.raises(UserError, match=words):
        check(changed(**fields))


def test_what_can_be_served_passes():
    check(changed(finetune={"kinds": ("plain",)}, sweep={"arms": ("real_only", "band", "ceiling")}))
    check(changed(finetune={"grades": (1,), "joint": True}))
    check(changed(ingest={"source": "ddr", "phantoms": ()}))  # what real data sets hold is seen later


def test_what_is_left_of_a_sweep_is_estimated_from_measured_trials(tmp_path):
    recipe = changed(recipes.named("debug"), sweep={"arms": ("band", "naive"), "num_seeds": 5, "map_bands": ()})
    run = Run(tmp_path)
    assert works(recipe, tmp_path)["sweep"] == ("10 trials of 6 steps", "0", "unmeasured")
    for number in range(4):
        row = dict.fromkeys(schema.TRIALS.names) | {"trial_id": f"t{number}", "arm": "band", "purpose": "arm"}
        row |= {"backbone": "test_resnet" if number < 3 else "other", "steps": 12, "seconds": 2400.0}
        table = pa.Table.from_pylist([row], schema.TRIALS)
        shards.commit(run, f"trials/results/t{number}.parquet", table, schema.TRIALS, "t")
    # 200 s a step, 6 steps, 6 trials left: two hours, on a quarter of a GPU half a GPU-hour.
    assert works(recipe, tmp_path)["sweep"][1:] == ("4", "unmeasured, about 2.00 h of training for 6 more")
    found = {row.stage: row.cost for row in describe(recipe, run, shapes.named("workstation"))}
    assert found["sweep"] == "unmeasured, about 2.00 h of training for 6 more, 0.50 GPU-hours"


def test_before_a_trial_is_measured_its_seconds_may_be_assumed(tmp_path, monkeypatch):
    monkeypatch.delenv("RAYDR_PRICES", raising=False)
    recipe = changed(recipes.named("debug"), sweep={"arms": ("band", "naive"), "num_seeds": 5, "map_bands": ()})

    def told(**fields):
        shape = dataclasses.replace(shapes.named("cluster"), **fields)
        return {row.stage: row.cost for row in describe(recipe, Run(tmp_path), shape)}["sweep"]

    assert told() == "unmeasured"
    # 10 trials of an hour on half a GPU: 5 GPU-hours, on spot g4dn.2xlarge at .30.
    assert told(trial_seconds=3600.0) == (
        "unmeasured, about 10.00 h of training for 10 more, 5.00 GPU-hours, 1.50 USD with one GPU a node, example "
        "prices, assuming 3600 s a trial"
    )
    assert told(trial_seconds=3600.0, trial_gpus=0.0) == (
        "unmeasured, about 10.00 h of training for 10 more, assuming 3600 s a trial"
    )
    row = dict.fromkeys(schema.TRIALS.names) | {"trial_id": "t", "backbone": "test_resnet", "steps": 6, "seconds": 60.0}
    table = pa.Table.from_pylist([row], schema.TRIALS)
    shards.commit(Run(tmp_path), "trials/results/t.parquet", table, schema.TRIALS, "t")
    assert told(trial_seconds=3600.0) == "unmeasured, about 0.15 h of training for 9 more, 0.07 GPU-hours"
    with pytest.raises(UserError, match=r"shape\.trial_seconds must not be negative"):
        dataclasses.replace(shapes.named("laptop"), trial_seconds=-1)


def test_an_earlier_table_of_trials_reads_with_nulls(tmp_path):
    """Rows of a version without the columns of mixup and soft labels."""
    earlier = schema.versions(schema.TRIALS)[1]
    assert len(earlier) == 25
    row = dict.fromkeys(earlier.names) | {"trial_id": "t", "steps": 3}
    shards.commit(Run(tmp_path), "trials/results/t.parquet", pa.Table.from_pylist([row], earlier), earlier, "t")
    (found,) = shards.read(Run(tmp_path), "trials/results", schema.TRIALS).to_pylist()
    assert (found["steps"], found["mixup"], found["weight_decay"]) == (3, None, None)
    assert shards.verify(Run(tmp_path)) == []
