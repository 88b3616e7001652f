"""What a run at rest can do without, on a disk and in a bucket: nothing more, and nothing less."""

import dataclasses
import json
import os
import time

import pyarrow as pa
import pytest
from s3_server import serve

from raydr import cli, garbage, recipes, shards
from raydr.backends import connect
from raydr.errors import DamagedData
from raydr.schema import SCORES
from raydr.storage import Run

RECIPE = recipes.debug()  # finetune.kinds = plain, ecc
SCORED = pa.table(
    {"sample_id": ["a"], "ensemble_id": ["e"], "probabilities": [[[0.2] * 5]], "score": [0.5], "disagreement": [0.0]}
)


@pytest.fixture(scope="module")
def s3():
    with serve() as address:
        yield address


@pytest.fixture(params=["local", "s3"])
def run(request, tmp_path):
    if request.param == "local":
        return Run(tmp_path / "out")
    request.getfixturevalue("s3")
    return Run(f"s3://bucket/gc/{request.node.name.replace('[', '-').rstrip(']')}")


def put(run, key, data=b"12345"):
    """Any name that Ray may give, hidden ones too."""
    if run.local is None:
        connect(run.url).put(key, data, create=False)
        return
    (run.local / key).parent.mkdir(parents=True, exist_ok=True)
    (run.local / key).write_bytes(data)


def everything(run):
    """{key: bytes}, hidden ones too; without the lock, which comes and goes."""
    if run.local is None:
        backend = connect(run.url)
        return {key: backend.get(key) for key, _ in backend.list("") if key != "_lock"}
    files = [path for path in run.local.rglob("*") if path.is_file() and path.name != "_lock"]
    return {path.relative_to(run.local).as_posix(): path.read_bytes() for path in files}


def generator(run, name, kind, branch_id, whole=True):
    put(run, f"generators/{name}/generator.json", json.dumps({"kind": kind, "branch_id": branch_id}).encode())
    if whole:
        put(run, f"generators/{name}/_done.json", b"{}")


def committed(run, key):
    shards.commit(run, key, SCORED, SCORES, "f" * 16)


def found(run, **options):
    return {waste.key: waste for waste in garbage.find(run, RECIPE, **options)}


def test_an_empty_run_and_a_finished_table_hold_no_waste(run):
    assert found(run, caches=True) == {}
    committed(run, "scores/e/g-1/g1-000000.parquet")
    put(run, "recipe.json", b"{}")
    assert found(run, caches=True) == {}


def test_starts_count_until_the_shard_is_there(run):
    first, second, third = (f"scores/e/g-1/g1-{k:06d}.parquet" for k in range(3))
    committed(run, first)
    for key in (first, first, second, third):
        shards.record_start(run, key, "node")
    shards.quarantine(run, "scores", third, "crashed", "three times")
    waste = found(run)
    assert len(waste) == 2
    assert all(key.startswith("_attempts/scores/e/g-1/g1-000000/") for key in waste)
    garbage.remove(run, list(waste.values()))
    assert {key: len(nodes) for key, nodes in shards.starts(run).items()} == {second: 1, third: 1}


def test_shards_without_a_record(run):
    committed(run, "scores/e/g-1/g1-000000.parquet")
    put(run, "scores/e/g-1/g1-000001.parquet")
    put(run, "real/DDR-000000.parquet")
    put(run, "staging/DDR/000000.parquet")  # an ingest that was cut goes on from it
    assert set(found(run)) == {"scores/e/g-1/g1-000001.parquet", "real/DDR-000000.parquet"}
    committed(run, "scores/e/g-1/g1-000002.parquet")
    put(run, "_commits/scores/e/g-1/g1-000002.json", b"no json")
    with pytest.raises(DamagedData, match="raydr repair"):
        found(run)


def test_uploads_that_were_cut(run):
    generator(run, "plain-g1-a", "plain", "plain-g1-a")
    generator(run, "plain-g3-b", "plain", "plain-g3-b", whole=False)
    put(run, "graders/e-1/00-net/_done.json", b"{}")
    put(run, "graders/e-1/00-net/model.safetensors")
    put(run, "graders/e-1/01-net/model.safetensors", b"123")
    waste = found(run)
    assert set(waste) == {"generators/plain-g3-b/generator.json", "graders/e-1/01-net/model.safetensors"}
    assert waste["graders/e-1/01-net/model.safetensors"].bytes == 3


def test_snapshots_of_generators_that_are_stored(run):
    generator(run, "plain-g1-a", "plain", "plain-g1-a")
    for name in ("plain-g1-a@00000040-0af1", "plain-g1-a@00000080-77", "plain-g3-b@00000040-1c"):
        put(run, f"_ray/finetune/finetune-1/{name}/state.pt")
    put(run, "_ray/finetune/finetune-2/plain-g1-a@00000040-0af1/state.pt")
    put(run, "_ray/finetune/finetune-2/.validate_storage_marker", b"")
    put(run, "_ray/finetune/finetune-3/checkpoint_2026/plain-g1-a.pt")
    put(run, "_ray/finetune/finetune-4/checkpoint_2026/plain-g3-b.pt")
    assert set(found(run)) == {
        "_ray/finetune/finetune-1/plain-g1-a@00000040-0af1",
        "_ray/finetune/finetune-1/plain-g1-a@00000080-77",
        "_ray/finetune/finetune-2",
        "_ray/finetune/finetune-3",
    }
    garbage.remove(run, list(found(run).values()))
    assert [key for key in everything(run) if key.startswith("_ray")] == [
        "_ray/finetune/finetune-1/plain-g3-b@00000040-1c/state.pt",
        "_ray/finetune/finetune-4/checkpoint_2026/plain-g3-b.pt",
    ]


def test_a_branch_point_stays_until_every_kind_has_left_it(run):
    for name in ("plain-g1-a", "plain-g3-b"):
        generator(run, name, "plain", name)
        put(run, f"branches/{name}/state.pt")
    generator(run, "ecc-g1-c", "ecc", "plain-g1-a")
    generator(run, "ecc-g3-d", "ecc", "plain-g3-b", whole=False)
    assert [key for key in found(run) if key.startswith("branches")] == ["branches/plain-g1-a"]
    more = dataclasses.replace(RECIPE, finetune=dataclasses.replace(RECIPE.finetune, kinds=("plain", "ecc", "ecc_w0")))
    assert not [waste for waste in garbage.find(run, more) if waste.key.startswith("branches")]


def test_experiments_of_a_sweep_once_its_trials_are_committed(run):
    put(run, "_ray/sweep/sweep-1/run_trial_0=x y,[1]/result.json", b"123")
    put(run, "_ray/sweep/sweep-1/.validate_storage_marker", b"1")
    assert found(run) == {}
    put(run, "trials/plan.json", json.dumps({"trial_ids": ["t1", "t2"]}).encode())
    committed(run, "trials/results/t1.parquet")
    assert found(run) == {}
    committed(run, "trials/results/t2.parquet")
    (waste,) = found(run).values()
    assert (waste.key, waste.bytes) == ("_ray/sweep/sweep-1", 4)
    garbage.remove(run, [waste])
    assert not [key for key in everything(run) if key.startswith("_ray")]


def test_caches_go_only_when_asked_for(run):
    put(run, "cache/arrays/64px.u8", b"123456")
    put(run, "cache/latents/train.safetensors", b"1")
    assert found(run) == {}
    assert {key: waste.bytes for key, waste in found(run, caches=True).items()} == {
        "cache/arrays": 6,
        "cache/latents": 1,
    }


def test_temporary_files_of_killed_writers(tmp_path):
    run = Run(tmp_path)
    put(run, ".tmp/1-aa", b"123")
    put(run, ".tmp/2-bb", b"1234")
    os.utime(tmp_path / ".tmp" / "1-aa", (time.time() - 4000,) * 2)
    (waste,) = garbage.find(run, RECIPE)
    assert (waste.what, waste.bytes) == ("temporary files", 3)
    garbage.remove(run, [waste])
    assert os.listdir(tmp_path / ".tmp") == ["2-bb"]


def test_removing_twice_is_no_error_and_leaves_no_empty_folder(run):
    key = "scores/e/g-1/g1-000000.parquet"
    committed(run, key)
    shards.record_start(run, key, "node")
    put(run, "cache/arrays/64px.u8")
    waste = garbage.find(run, RECIPE, caches=True)
    counted = []
    garbage.remove(run, waste, counted.append)
    assert counted == [1, 2]
    garbage.remove(run, waste)
    assert set(everything(run)) == {key, "_commits/scores/e/g-1/g1-000000.json"}
    if run.local is not None:
        assert not (run.local / "_attempts").exists()
        assert not (run.local / "cache").exists()


# The command


def littered(run):
    recipe = dataclasses.asdict(RECIPE)
    run.replace_json("recipe.json", {"recipe": recipe, "versions": {}, "revision": None})
    committed(run, "scores/e/g-1/g1-000000.parquet")
    shards.record_start(run, "scores/e/g-1/g1-000000.parquet", "node")
    put(run, "scores/e/g-1/g1-000001.parquet", b"x" * 20_000)
    return run


def test_the_command_says_first_and_deletes_on_request(run, capsys):
    before = everything(littered(run))
    assert cli.main(["gc", run.url]) == 0
    told = capsys.readouterr().out
    assert "0.02 MB" in told
    assert "shards without a record" in told
    assert "scores/e/g-1/g1-000001.parquet" not in told
    assert cli.main(["gc", run.url, "--verbose"]) == 0
    assert "scores/e/g-1/g1-000001.parquet  20000 bytes" in capsys.readouterr().out
    assert everything(run) == before
    assert cli.main(["gc", run.url, "--yes"]) == 0
    assert "2 deleted, 0.02 MB freed" in capsys.readouterr().out
    after = everything(run)
    assert after == {key: data for key, data in before.items() if key in after}
    assert set(before) - set(after) == {
        "scores/e/g-1/g1-000001.parquet",
        next(key for key in before if key.startswith("_attempts")),
    }
    assert shards.verify(run) == []
    assert cli.main(["gc", run.url, "--yes"]) == 0
    assert "nothing to delete" in capsys.readouterr().out


def test_it_refuses_while_a_driver_works(run, capsys):
    before = everything(littered(run))
    with run.lock("synthesize"):
        assert cli.main(["gc", run.url, "--yes"]) == 2
    assert "is in use by `synthesize`" in capsys.readouterr().out
    assert everything(run) == before


def test_no_run_is_one_sentence(tmp_path, capsys):
    assert cli.main(["gc", str(tmp_path / "typo")]) == 2
    assert "There is no run" in capsys.readouterr().out
    assert not (tmp_path / "typo").exists()
