"""The pools of synthesis without a cluster: what a scorer says is what the generator's own actor says."""

import json

import numpy as np
import pytest
import torch
from small_run import make_run, small_recipe

from raydr import cli
from raydr.cluster import ensemble, generator, scorer, synthesize, watched
from raydr.cluster.sink import NOTHING, RAW, SAID, pack, unpack
from raydr.diffusion.model import PHANTOM_BASE
from raydr.shapes import Shape

GRADE = 3


class Context:
    def get_node_id(self):
        return "0" * 56


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run with members, photographs and the plain base as a generator."""
    monkeypatch.setattr(watched.ray, "get_runtime_context", lambda: Context())
    threads = torch.get_num_threads()
    made = make_run(tmp_path / "out", small_recipe())
    assert cli.main(["finetune", "import", str(PHANTOM_BASE), "--out", made.url, "--grade", str(GRADE)]) == 0
    yield made
    torch.set_num_threads(threads)


def test_scorers_say_what_the_generators_own_actor_says(run):
    recipe = small_recipe()
    (name,) = [key.split("/")[1] for key, _ in run.list("generators") if key.endswith("/generator.json")]
    lease = {"generator_id": name, "grade": GRADE, "number": 0, "key": f"synthetic/{name}/g{GRADE}-000000.parquet"}
    common = {"url": run.url, "recipe": recipe, "ensemble_id": ensemble.identity(recipe, run), "num_threads": 1}
    common |= {"gpu": False}

    def made(judges):
        arguments = common | {"judges": judges}
        return generator.Generate(generator.Diffusion, arguments, run.url, "quota", 300.0, shard_size=8).make(lease)

    whole, bare = made(True), made(False)
    assert all(bare[column].null_count == 8 for column in SAID)
    assert json.loads(bare["plan"][0].as_py())["threshold"] is None
    packed = unpack(pack(bare))
    scored = scorer.Score(generator.Judge, common, run.url, "quota", 300.0).score(lease, packed)
    assert scored.schema == RAW
    for column in set(RAW.names) - {"plan", "seconds"}:
        assert scored[column].to_pylist() == whole[column].to_pylist(), column
    assert json.loads(scored["plan"][0].as_py())["threshold"] == json.loads(whole["plan"][0].as_py())["threshold"]
    assert (np.asarray(scored["seconds"]) > np.asarray(bare["seconds"])).all()


def test_an_empty_ticket_needs_no_scorer(run):
    made = scorer.Score(dict, {}, run.url, "no quota", 300.0)
    assert made(NOTHING) is NOTHING


@pytest.mark.parametrize(
    ("generators", "least", "tickets", "bounds"),
    [(8, 0, 100, (8, 8)), (8, 2, 100, (2, 8)), (8, 2, 1, (1, 1)), (8, 8, 100, (8, 8)), (8, 0, 3, (3, 3))],
)
def test_a_pool_lies_between_its_named_bounds(generators, least, tickets, bounds):
    pool = synthesize.pool(Shape(generators=generators, min_generators=least), tickets)
    assert (pool.min_size, pool.max_size) == bounds
    assert pool.initial_size == bounds[0]
