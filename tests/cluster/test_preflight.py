"""What fits on which nodes, what an autoscaler must bring, and what is refused before anything starts. No Ray."""

import dataclasses
import math
from pathlib import Path

import pytest
import yaml

from raydr import recipes
from raydr.cluster import pipeline, placement, preflight, trial
from raydr.cluster.packing import Kind, Node, Pool, infeasible, needs, pack
from raydr.errors import UserError
from raydr.shapes import SHAPES, Shape
from raydr.storage import Run

GPU_NODE = Node("gpu", 4, 1, math.inf, "L4")
CPU_NODE = Node("cpu", 8)


def test_two_pools_that_hang_in_ray_are_left_over():
    """A 1-GPU generator and a 0.1-GPU scorer on one GPU: Ray waits for ever."""
    found = pack([Pool("generator", 1, 1), Pool("scorer", 1, 0.1)], [GPU_NODE])
    assert found.left == {"scorer": 1}
    assert found.placed == {"generator": 1}
    assert pack([Pool("generator", 1, 0.9), Pool("scorer", 1, 0.1)], [GPU_NODE]).left == {}


def test_a_share_of_a_gpu_lies_on_one_device():
    two = Node("n", 16, 2)
    assert pack([Pool("g", 1, 0.6, least=3)], [two]).left == {"g": 1}  # 1.8 of 2 GPUs, and yet
    assert pack([Pool("g", 1, 0.5, least=4)], [two]).left == {}
    assert pack([Pool("g", 1, 2), Pool("h", 1, 0.5)], [two]).left == {"h": 1}
    # Shares fill the fuller device, so that a whole one stays.
    assert pack([Pool("whole", 1, 1), Pool("half", 1, 0.5, least=2)], [two]).left == {}


def test_cpu_work_leaves_gpu_nodes_alone():
    pools = [Pool("generator", 4, 1), Pool("task", 4, least=2)]
    assert pack(pools, [GPU_NODE, CPU_NODE]).left == {}
    assert pack(pools, [GPU_NODE, Node("cpu", 4)]).left == {"task": 1}


def test_memory_and_device_type_count():
    assert pack([Pool("g", 1, memory=2e9, least=2)], [Node("n", 8, memory=3e9)]).left == {"g": 1}
    assert pack([Pool("g", 1, 1, accelerator="L4")], [GPU_NODE]).left == {}
    assert pack([Pool("g", 1, 1, accelerator="A10G")], [GPU_NODE]).left == {"g": 1}
    assert pack([Pool("t", 1, 0, accelerator="A10G")], [GPU_NODE]).left == {}  # no GPU asked for: any node


def test_an_autoscaler_brings_the_smallest_node_that_does_it():
    kinds = [
        Kind(Node("big", 48, 4), 2),
        Kind(Node("small", 4, 1), 3),
        Kind(Node("cpu", 16), 4),
    ]
    generators = Pool("generators", 1, 1, least=1, wanted=5)
    assert pack([generators], [CPU_NODE], kinds).bring == {"small": 1}
    assert pack([generators], [CPU_NODE], kinds, wanted=True).bring == {"small": 3, "big": 1}
    told = needs("synthesize", [generators], [CPU_NODE], kinds)
    assert told == "synthesize: the autoscaler must bring 3 x small (4 CPUs, 1 GPU), 1 x big (48 CPUs, 4 GPU)"
    many = dataclasses.replace(generators, wanted=20)
    assert "11 of 20 generators (1 CPU, 1 GPU each) fit at a time" in needs("synthesize", [many], [CPU_NODE], kinds)
    assert needs("synthesize", [generators], [Node("n", 16, 8)], kinds) is None


def test_what_can_never_start_is_said_in_one_sentence():
    ranks = Pool("training ranks", 1, 1, least=4, wanted=4)
    refusal = infeasible("finetune", [ranks], [GPU_NODE, GPU_NODE], [])
    assert refusal.startswith(
        "finetune cannot start: 2 of its 4 training ranks (1 CPU, 1 GPU each) fit nowhere on 2 nodes of 4 CPUs, 1 L4:"
    )
    assert infeasible("finetune", [ranks], [GPU_NODE], [Kind(GPU_NODE, 3)]) is None
    assert "the autoscaler may bring 2 nodes" in infeasible("finetune", [ranks], [GPU_NODE], [Kind(GPU_NODE, 2)])
    assert "on no node" in infeasible("finetune", [ranks], [], [])


def test_the_laptop_fits_two_cpus_and_one_generator_more_does_not():
    recipe, two = recipes.named("debug"), [Node("here", 2, memory=4e9)]
    for stage in ("ingest", "ensemble", "finetune", "synthesize", "sweep"):
        assert infeasible(stage, preflight.pools(recipe, SHAPES["laptop"], stage), two, []) is None, stage
    more = preflight.pools(recipe, Shape(generators=4), "synthesize")
    assert "synthesize cannot start" in infeasible("synthesize", more, two, [])


def test_reader_and_sink_of_synthesis_fit_beside_every_generator():
    """They take a quarter of a CPU each, so that nodes of one CPU hold a generator and something beside it."""
    pools = preflight.pools(recipes.named("debug"), SHAPES["laptop"], "synthesize")
    assert infeasible("synthesize", pools, [Node("a", 1), Node("b", 1)], []) is None
    assert "synthesize cannot start" in infeasible("synthesize", pools, [Node("a", 1)], [])
    # One generator would start on its GPU, but with the other seven that are asked for no CPU is left.
    pools = preflight.pools(recipes.named("debug"), SHAPES["cluster"], "synthesize")
    refused = infeasible("synthesize", pools, [Node(str(n), 1, 1) for n in range(8)], [])
    assert "1 of its 1 reader of tickets and sink of shards (0.5 CPUs each) beside 8 generators" in refused
    assert infeasible("synthesize", pools, [Node(str(n), 1, 1) for n in range(9)], []) is None


def test_scorers_of_their_own_fit_beside_every_generator():
    recipe, shape = recipes.named("debug"), dataclasses.replace(SHAPES["cluster"], generators=2, scorers=1)
    pools = preflight.pools(recipe, dataclasses.replace(shape, scorer_gpus=0.1), "synthesize")
    refused = infeasible("synthesize", pools, [Node("a", 8, 2)], [])
    assert "1 of its 1 scorers (0.5 CPUs, 0.1 GPU" in refused
    assert "beside 2 generators" in refused
    assert infeasible("synthesize", pools, [Node("a", 8, 2), Node("b", 8, 1)], []) is None
    assert infeasible("synthesize", preflight.pools(recipe, shape, "synthesize"), [Node("a", 8, 2)], []) is None


def listed(node_id, cpus=4.0, alive=True, **more):
    resources = {"CPU": cpus, "memory": 8e9, **more.pop("resources", {})}
    return {
        "NodeID": node_id * 56, "Alive": alive, "NodeManagerAddress": f"10.0.0.{ord(node_id)}", "Resources": resources,
        "NodeManagerHostname": f"host-{node_id}", "Labels": more,
    }  # fmt: skip


def test_nodes_as_ray_lists_them():
    nodes = [listed("a", resources={"GPU": 2.0, "accelerator_type:L4": 1.0}), listed("b", alive=False), listed("c")]
    assert preflight.read_nodes(nodes) == [
        Node("10.0.0.97", 4.0, 2.0, 8e9, "L4"),
        Node("10.0.0.99", 4.0, 0.0, 8e9, ""),
    ]


def test_the_shape_cluster_fits_what_cluster_yaml_may_bring():
    """From the head alone: every stage of the paper's recipe can start, and what must come is named."""
    config = yaml.safe_load((Path(__file__).parents[2] / "cluster.yaml").read_text())
    head = [listed("a", 6.0, **{preflight.GROUP: "head"})]
    kinds = preflight.read_kinds(config, head)
    assert {kind.node.name: kind.most for kind in kinds} == {
        "ingest": 4, "train": 2, "generate": 8, "generate_8cpu": 8, "generate_16cpu": 8, "sweep": 8,
    }  # fmt: skip
    recipe, shape, nodes = recipes.named("ddr_sd15"), SHAPES["cluster"], preflight.read_nodes(head)
    for stage in ("ingest", "ensemble", "finetune", "synthesize", "sweep"):
        assert infeasible(stage, preflight.pools(recipe, shape, stage), nodes, kinds) is None, stage
    told = needs("synthesize", preflight.pools(recipe, shape, "synthesize"), nodes, kinds)
    assert told == "synthesize: the autoscaler must bring 8 x generate (4 CPUs, 1 GPU)"
    # Nodes that are there already are not brought again.
    running = [*head, *(listed(letter, **{preflight.GROUP: "generate"}) for letter in "bcd")]
    left = {kind.node.name: kind.most for kind in preflight.read_kinds(config, running)}
    assert left["generate"] == 5
    # 24 nodes in all, of which 2 have 4 GPUs: 30 ranks are the most, though the types' own limits add up to 40.
    for ranks, fits in ((12, True), (30, True), (31, False), (40, False)):
        pools = preflight.pools(recipe, dataclasses.replace(shape, train_workers=ranks), "finetune")
        assert (infeasible("finetune", pools, nodes, kinds) is None) == fits, ranks
    assert ", 24 of them at most: choose" in infeasible("finetune", pools, nodes, kinds)
    assert sum(pack(pools, nodes, kinds).bring.values()) == 24
    # Workers of any type that run already take of the 24.
    left = preflight.read_kinds(config, running)
    assert {kind.together for kind in left} == {21}
    assert sum(pack(pools, nodes, left).bring.values()) == 21


def test_where_an_autoscaler_says_what_it_may_bring(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAYDR_CLUSTER_YAML", raising=False)
    head = [listed("a", **{preflight.GROUP: "head"})]
    assert preflight.node_kinds([listed("a")]) == []  # no autoscaler
    assert preflight.node_kinds(head) is None  # one that does not say
    config = {"head_node_type": "head", "max_workers": 3, "available_node_types": {
        "head": {"resources": {"CPU": 2}}, "g": {"resources": {"CPU": 4, "GPU": 1}, "max_workers": 9}}}  # fmt: skip
    (tmp_path / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(config))
    assert preflight.node_kinds(head) == [Kind(Node("g", 4, 1), 3, 3)]
    (tmp_path / "other.yaml").write_text("[1, 2")
    monkeypatch.setenv("RAYDR_CLUSTER_YAML", str(tmp_path / "other.yaml"))
    with pytest.raises(UserError, match="no cluster configuration"):
        preflight.node_kinds(head)


def check(monkeypatch, tmp_path, capsys, nodes, shape, stages=("ensemble",), kinds=()):
    monkeypatch.setattr(preflight.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(preflight, "node_kinds", lambda listed: kinds if kinds is None else list(kinds))
    preflight.check(recipes.named("debug"), Run(str(tmp_path)), shape, stages)
    return " ".join(capsys.readouterr().out.split())


def test_check_refuses_notes_or_is_silent(monkeypatch, tmp_path, capsys):
    one = [listed("a")]
    gpus = Shape(trial_gpus=1.0)
    assert check(monkeypatch, tmp_path, capsys, one, Shape()) == ""
    with pytest.raises(UserError, match="ensemble cannot start: 1 of its 1 graders"):
        check(monkeypatch, tmp_path, capsys, one, gpus)
    told = check(monkeypatch, tmp_path, capsys, one, gpus, kinds=[Kind(Node("g", 4, 1), 8)])
    assert told == "ensemble: the autoscaler must bring 3 x g (4 CPUs, 1 GPU)"
    assert "raydr cannot read which" in check(monkeypatch, tmp_path, capsys, one, gpus, kinds=None)


# Which nodes.


def test_nodes_are_excluded_by_address_host_or_id():
    nodes = [listed("a"), listed("b"), listed("c"), listed("d", alive=False)]
    assert placement.find(["host-b"], nodes) == ("b" * 56,)
    assert placement.find(["10.0.0.97", "c" * 12, "host-a"], nodes) == ("a" * 56, "c" * 56)
    for wrong in ("host-d", "c" * 7, ""):
        with pytest.raises(UserError, match=r"is no node of this cluster: it has 10\.0\.0\.97 \(aaaaaaaaaaaa\)"):
            placement.find([wrong], nodes)
    with pytest.raises(UserError, match="leaves no node of 3"):
        placement.find(["host-a", "host-b", "host-c"], nodes)


def test_rules_reach_what_ray_is_asked_for(monkeypatch):
    nodes = [listed("a"), listed("b")]
    monkeypatch.setattr(placement.ray, "nodes", lambda: nodes)
    assert placement.options(1.0) == {}
    with placement.under(Shape(accelerator="L4", exclude_nodes=("host-b",))):
        assert placement.options(1.0) == {
            "label_selector": {"ray.io/node-id": f"!in({'b' * 56})"},
            "resources": {"accelerator_type:L4": 0.001},
        }
        assert "resources" not in placement.options()  # CPU work goes anywhere
        assert [node.name for node in preflight.read_nodes(nodes)] == ["10.0.0.97"]
        factory = placement.bundle(2, 0.5)
        assert factory.bundles == [{"CPU": 2.0, "GPU": 0.5, "accelerator_type:L4": 0.001}]
        assert factory._kwargs["bundle_label_selector"] == [{"ray.io/node-id": f"!in({'b' * 56})"}]
    assert placement.options(1.0) == {}


# One batch, on a CPU that says how much it may take.


class Fake:
    device, name = "cpu", "FakeGPU"

    def __init__(self, limit, peak):
        self._limit, self._peak = limit, peak

    def limit(self):
        return self._limit

    def peak(self):
        return self._peak


@pytest.mark.parametrize("stage", ["synthesize", "finetune"])
def test_a_real_batch_runs_and_is_judged_by_the_limit(stage, tmp_path):
    recipe, ran = recipes.named("debug"), []

    def work(device):
        trial.WORK[stage](recipe, Run(str(tmp_path)), device)
        ran.append(device)

    fits = trial.attempt(work, Fake(limit=10 << 30, peak=4 << 30))
    assert ran == ["cpu"]
    assert fits.fits
    assert trial.refusal(stage, fits, recipe, 0.5) is None
    outcome = trial.attempt(lambda device: None, Fake(limit=3 << 30, peak=4 << 30))
    sentence = trial.refusal(stage, outcome, recipe, 0.5)
    assert "do not fit in the 3.0 GiB that 0.5 of a FakeGPU gives (4.0 GiB were taken)" in sentence


def test_running_out_is_no_traceback():
    import torch

    def work(device):
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert not trial.attempt(work, Fake(limit=8 << 30, peak=2 << 30)).fits


def test_the_advice_fits_the_recipe():
    recipe = recipes.named("ddr_sd15")
    outcome = trial.Outcome("L4", 23 << 30, 21 << 30, False)
    assert "lower synthesize.sampler.batch (now 16)" in trial.refusal("synthesize", outcome, recipe, 1)
    assert "lower finetune.batch_pairs (now 3)" in trial.refusal("finetune", outcome, recipe, 1)
    without = dataclasses.replace(recipe, finetune=dataclasses.replace(recipe.finetune, gradient_checkpointing=False))
    assert "set finetune.gradient_checkpointing" in trial.refusal("finetune", outcome, without, 1)


def test_a_trial_is_made_once_a_run_and_device(monkeypatch, tmp_path, capsys):
    recipe, run, asked = recipes.named("debug"), Run(str(tmp_path)), []
    answers = {"L4": trial.Outcome("NVIDIA L4", 5 << 30, 20 << 30, True), "T4": None}

    def ask(recipe, target, stage, share, device):
        asked.append((stage, share, device))
        return answers[device]

    monkeypatch.setattr(trial, "_ask", ask)
    shape = Shape(generator_gpus=1.0)
    for _ in range(2):
        trial.check(recipe, run, shape, ["ingest", "finetune", "synthesize"], ["L4", "T4"])
    assert asked == [("synthesize", 1.0, "L4"), ("synthesize", 1.0, "T4"), ("synthesize", 1.0, "T4")]
    assert "a trial batch took 5.0 of 20.0 GiB on NVIDIA L4" in capsys.readouterr().out
    answers["T4"] = trial.Outcome("Tesla T4", 15 << 30, 14 << 30, False)
    for _ in range(2):  # a failure is tried again
        with pytest.raises(UserError, match="Tesla T4"):
            trial.check(recipe, run, shape, ["synthesize"], ["L4", "T4"])
    assert asked.count(("synthesize", 1.0, "T4")) == 4


def test_a_stage_that_begins_without_a_gpu_waits_for_one_and_tries_a_batch(monkeypatch, tmp_path, capsys):
    """cluster.yaml starts at zero, so that `check` found no GPU to try one on."""
    recipe, run, asked, there = recipes.named("debug"), Run(str(tmp_path)), [], [listed("a")]
    answer = trial.Outcome("NVIDIA L4", 25 << 30, 20 << 30, False)

    def ask(recipe, target, stage, share, device):
        asked.append((stage, share, device))
        return answer

    monkeypatch.setattr(trial, "_ask", ask)
    monkeypatch.setattr(preflight.ray, "nodes", lambda: there)
    shape = Shape(generator_gpus=0.5)
    preflight.begin(recipe, run, shape, "sweep")
    preflight.begin(recipe, run, Shape(), "synthesize")
    assert asked == []
    with pytest.raises(UserError, match="synthesize: a batch of 4 images at 32 px do not fit"):
        preflight.begin(recipe, run, shape, "synthesize")
    assert asked == [("synthesize", 0.5, "")]
    assert "one batch is tried first, when a node with a GPU has come" in " ".join(capsys.readouterr().out.split())
    there.append(listed("b", resources={"GPU": 1.0, "accelerator_type:L4": 1.0}))
    answer = dataclasses.replace(answer, peak=5 << 30, fits=True)
    for _ in range(2):
        preflight.begin(recipe, run, shape, "synthesize")
    assert asked[1:] == [("synthesize", 0.5, "L4")]
    assert "when a node" not in capsys.readouterr().out


def test_no_stage_runs_when_its_batch_does_not_fit(monkeypatch, tmp_path):
    """Through the pipeline: the refusal comes after the stage before it, which may be what brought the nodes."""
    recipe, run = recipes.named("debug"), Run(str(tmp_path))
    pipeline.open_run(recipe, run)
    begun = []

    def refuse(recipe, target, shape, stage):
        begun.append(stage)
        raise UserError("does not fit")

    monkeypatch.setattr(preflight, "begin", refuse)
    with pytest.raises(UserError, match="does not fit"):
        pipeline._stage(recipe, run, Shape(), "synthesize")
    assert begun == ["synthesize"]
    assert run.read_json("recipe.json")["begun"] == []  # so that the smaller batch is no other run
