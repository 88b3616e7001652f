"""Each stage's comparison from start to end, bare loops standing in for Ray; no ratio, which load would break."""

import pytest

from raydr.bench import bare, finetune, peers, results, rig, score, sweep, synthesize, workload
from raydr.config import Recipe
from raydr.record import restore
from raydr.shapes import Shape
from raydr.storage import Run

from .prepared import prepare, small

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    target = Run(str(tmp_path_factory.mktemp("prepared") / "run"))
    prepare(target, small())
    return target.local


@pytest.fixture
def bench(prepared, tmp_path, monkeypatch):
    def in_this_process(loop, arguments):
        for item in arguments:
            ready = item | ({"recipe": restore(Recipe, item["recipe"])} if "recipe" in item else {})
            {**bare.LOOPS, **peers.LOOPS}[loop](**ready)

    monkeypatch.setattr(rig, "run_loops", in_this_process)
    monkeypatch.setattr(rig.Rig, "recipe", property(lambda self: small()))
    monkeypatch.setattr("raydr.cluster.session.cpus", lambda: 2)
    monkeypatch.setattr(peers, "PUBLISHED_STEPS", 2)
    sizes = workload.Sizes(repeats=1, finetune_steps=6, peer_batches=1, score_batches=1, score_shards=4)
    return rig.Rig(tmp_path, Shape(), sizes, results.Result({"repeats": 1}), prepared)


def test_score(bench, monkeypatch):
    def judge(recipe, target, ensemble_id, shape):
        bare.score(target.url, recipe, 1, 0, 1, "cpu")

    monkeypatch.setattr(score.rescore, "run", judge)
    score.run(bench)
    (pair,) = bench.result.pairs
    assert pair.efficiency > 0
    limit, slow = bench.result.peers
    assert (limit.name, slow.name) == ("forward passes alone", "decoded one by one")
    assert limit.rate > 0
    assert len(slow.ratios) == 3
    assert "MFU" in bench.result.values["scoring"]["note"]


def test_synthesize(bench, monkeypatch):
    monkeypatch.setattr(
        synthesize.synthesize, "run", lambda recipe, target, shape: bare.synthesize(target.url, recipe, 1, "cpu")
    )
    synthesize.run(bench)
    pair, side = bench.result.pairs
    assert (pair.name, side.name) == ("synthesize", "synthesize, side by side")
    assert side.bare > 0
    assert pair.efficiency > 0
    assert pair.mfu > 0
    assert {"framework CPU", "start-up beyond imports and models", "peak"} == set(bench.result.values)
    names = {peer.name for peer in bench.result.peers}
    assert {f"published scheme, {what} steps, images" for what in ("our", "equal")} <= names
    assert {f"diffusers loop, {what} steps, images" for what in ("our", "equal")} <= names


def test_finetune(bench, monkeypatch):
    monkeypatch.setattr(
        finetune.finetune, "run", lambda recipe, target, shape: bare.train_generator(target.url, recipe, 1, "cpu")
    )
    finetune.run(bench)
    one, two = bench.result.pairs
    assert (one.name, two.name) == ("finetune", "finetune, 2 workers")
    assert one.efficiency > 0
    assert one.flops == two.flops > 1e8
    assert 0 < one.mfu < 1
    assert bench.result.peers[0].name == "accelerate loop"
    assert bench.result.values["two bare trainings over one"]["value"] > 0


def test_sweep(bench, monkeypatch):
    def trials(recipe, target, shape):
        bare.train_graders(target.url, recipe, 1, 0, 1, "cpu")
        return {"failed": []}

    monkeypatch.setattr(sweep.sweep, "run", trials)
    sweep.run(bench)
    (pair,) = bench.result.pairs
    assert pair.unit == "trials"
    assert pair.efficiency > 0
    names = {"2 bare trainings over one", "a trial beyond its training", "first epoch's wait for images"}
    at_once = "2 trials at once over one bare training"
    assert set(bench.result.values) == {*names, at_once}
    assert bench.result.values[at_once]["value"] > 0
    assert " x of bare processes, bar .95" in bench.result.values[at_once]["note"]
    assert 0 < bench.result.values["first epoch's wait for images"]["value"] < 100
