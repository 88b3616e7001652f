import shutil

import numpy as np
import pyarrow as pa
import pytest

from grading.blobs import blobs
from raydr import identity, images, schema, shards
from raydr.config import Grader
from raydr.errors import DamagedData, MissingInput
from raydr.grading import ensemble, rescoring
from raydr.grading.backbones import build
from raydr.lineage import sample_id, scores_key, shard_key
from raydr.storage import Run

TINY = Grader(backbone="test_resnet", px=32, steps=1, batch=10)
KEY = shard_key("plain-g1-a", 1, 0)


def member(folder, name, role="score", seed=0, trained_on=("DDR/train-0",), **more):
    hashes = ensemble.hash_ids(trained_on)
    meta = ensemble.Meta(name, TINY, seed, role=role, trained_on=hashes, **more)
    ensemble.save_member(folder / name, build(TINY, seed=seed), meta)


def write_photographs(run):
    splits = {"DDR/train-0": ("train", 0), "DDR/train-1": ("train", 1), "DDR/test-0": ("test", None)}
    rows = []
    for name, (split, fold) in splits.items():
        row = dict.fromkeys(schema.REAL.names)
        rows.append(row | {"image_id": name, "split": split, "fold": fold, "grade": 1, "image": b"x"})
    table = pa.Table.from_pylist(rows, schema=schema.REAL)
    shards.commit(run, "real/DDR-000000.parquet", table, schema.REAL, "real")


def write_images(run, number=0, count=6):
    """One shard of images with the grades 1 and 3 in turn, indices with a gap."""
    pixels, _ = blobs(count, seed=number)
    data = [images.encode(each) for each in pixels]
    grades = [1, 3] * (count // 2)
    values = {item.name: pa.nulls(count, item.type) for item in schema.SYNTHETIC}
    values["sample_id"] = pa.array([sample_id("plain-g1-a", 1, 2 * k) for k in range(count)])
    values["grade"] = pa.array(grades, pa.int8())
    values["image"] = pa.array(data, pa.large_binary())
    values["sha256"] = pa.array([identity.sha256(each) for each in data])
    shards.commit(run, shard_key("plain-g1-a", 1, number), pa.table(values), schema.SYNTHETIC, "synthetic")
    return pixels, np.array(grades)


@pytest.fixture
def graders(tmp_path):
    for name, role, seed in (("00-a", "score", 1), ("01-b", "score", 2), ("02-c", "audit", 3)):
        member(tmp_path / "graders", name, role, seed)
    return tmp_path / "graders"


@pytest.fixture
def run(tmp_path):
    target = Run(tmp_path / "out")
    write_photographs(target)
    return target


def own(run, folder, ensemble_id="e-1"):
    for path in sorted(folder.iterdir()):
        run.upload(path, f"graders/{ensemble_id}/{path.name}")


def test_a_shard_s_scores_are_the_ensemble_s_own(run, graders, tmp_path):
    pixels, grades = write_images(run)
    found = rescoring.find(run, str(graders), "score", tmp_path / "cache")
    judges = rescoring.load(run, found, tmp_path / "cache")
    (item,) = rescoring.plan(run, found)
    assert (item["key"], item["scores"], item["rows"]) == (KEY, scores_key(found.ensemble_id, KEY), 6)
    record = rescoring.score_shard(run, judges, found.ensemble_id, item)
    table = shards.read(run, f"scores/{found.ensemble_id}", schema.SCORES)
    assert table["sample_id"].to_pylist() == [f"plain-g1-a/g1/{2 * k}" for k in range(6)]
    expected = ensemble.Ensemble.load(graders).probabilities(pixels)
    assert np.array_equal(np.array(table["probabilities"].to_pylist(), np.float32), expected)
    by_hand = [np.mean([each[grade] for each in row]) for row, grade in zip(expected, grades, strict=True)]
    assert table["score"].to_pylist() == pytest.approx(by_hand, rel=1e-6)
    assert set(table["ensemble_id"].to_pylist()) == {found.ensemble_id}
    # Again: adopted, not doubled.
    assert rescoring.score_shard(run, judges, found.ensemble_id, item) == record


def test_what_is_planned_is_what_has_no_scores(run, graders, tmp_path):
    write_images(run, 0)
    found = rescoring.find(run, str(graders), "score", tmp_path / "cache")
    judges = rescoring.load(run, found, tmp_path / "cache")
    rescoring.score_shard(run, judges, found.ensemble_id, rescoring.plan(run, found)[0])
    write_images(run, 1)
    done = shards.commits(run, f"scores/{found.ensemble_id}")
    left = [i["key"] for i in rescoring.plan(run, found) if shards.pending([i["scores"]], i["fingerprint"], done)]
    assert left == [shard_key("plain-g1-a", 1, 1)]


def test_an_ensemble_from_elsewhere_is_kept_in_the_run_under_its_content(run, graders, tmp_path):
    found = rescoring.find(run, str(graders), "score", tmp_path / "cache")
    assert found.ensemble_id.startswith("i-")
    assert found.prefixes == tuple(f"imported/{found.ensemble_id}/{name}" for name in ("00-a", "01-b"))
    assert all(run.uploaded(prefix) for prefix in found.prefixes)
    assert rescoring.find(run, str(graders), "score", tmp_path / "cache") == found
    audit = rescoring.find(run, str(graders), "audit", tmp_path / "cache")
    assert [meta.name for meta in rescoring.metas(run, audit, tmp_path / "cache")] == ["02-c"]
    assert len(rescoring.find(run, str(graders), "all", tmp_path / "cache").prefixes) == 3
    shutil.rmtree(graders / "00-a")
    member(graders, "00-a", seed=9)
    other = rescoring.find(run, str(graders), "score", tmp_path / "cache")
    assert other.ensemble_id != found.ensemble_id


def test_an_ensemble_of_the_run_keeps_its_id(run, graders, tmp_path):
    own(run, graders)
    cache = tmp_path / "cache"
    by_id = rescoring.find(run, "e-1", "score", cache)
    assert (by_id.ensemble_id, by_id.prefixes) == ("e-1", ("graders/e-1/00-a", "graders/e-1/01-b"))
    assert rescoring.find(run, f"{run.url}/graders/e-1", "score", cache) == by_id
    assert rescoring.find(run, "e-1", "audit", cache) == rescoring.Judges("e-1-audit", ("graders/e-1/02-c",))
    assert not run.list("imported")


@pytest.mark.parametrize("name", ["e-9", "nowhere/at/all", "s3://bucket/graders"])
def test_no_such_ensemble(run, tmp_path, name):
    with pytest.raises(MissingInput, match=f"{name} is neither an ensemble of"):
        rescoring.find(run, name, "score", tmp_path / "cache")


def test_no_member_of_that_role(run, graders, tmp_path):
    shutil.rmtree(graders / "02-c")
    own(run, graders)
    with pytest.raises(MissingInput, match="no finished member of role 'audit'"):
        rescoring.find(run, "e-1", "audit", tmp_path / "cache")
    with pytest.raises(MissingInput, match="role 'audit'"):
        rescoring.find(run, str(graders), "audit", tmp_path / "cache")


def test_a_damaged_shard_gets_no_scores(run, graders, tmp_path):
    write_images(run)
    found = rescoring.find(run, str(graders), "score", tmp_path / "cache")
    judges = rescoring.load(run, found, tmp_path / "cache")
    (item,) = rescoring.plan(run, found)
    data = run.path(KEY).read_bytes()
    run.path(KEY).write_bytes(data[:-1])
    with pytest.raises(DamagedData, match="raydr repair"):
        rescoring.score_shard(run, judges, found.ensemble_id, item)
    assert not shards.commits(run, "scores")
