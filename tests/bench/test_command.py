"""`raydr bench` through the real entry point: what it refuses, and a small run of everything (slow)."""

import json
import os
from dataclasses import replace

import pytest

from raydr import arguments, cli
from raydr.bench import command, scaling, workload
from raydr.shapes import Shape

BARS = {
    "ingest, phantoms": 0.9,
    "ingest, photographs": 0.9,
    "score": 0.95,
    "synthesize": 0.95,
    "synthesize, side by side": 0.95,
    "finetune": 0.97,
    "finetune, 2 workers": 0.95,
    "sweep": 0.95,
}
# One small pair on a machine that may be busy: only what is broken falls below this.
GENEROUS = 0.35


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--shape", "phone"], "no shape 'phone'"),
        (["--against", "nowhere.json"], "--against nowhere.json cannot be read"),
        (["--nothing"], "does not know '--nothing'"),
        (["--shape", "cluster"], "bench measures the one machine that it runs on"),
        (["score", "--actors", "2"], "--actors belongs to `raydr bench scaling`, not to bench score"),
        (["score", "--sd15"], "--sd15 belongs to bench synthesize and finetune, not to bench score"),
        (["synthesize", "--cpus", "1"], "--cpus 1 holds no generator and its sink at once"),
        (["gpu", "--cpus", "1"], "--cpus belongs to the stages and to bench memory, not to bench gpu"),
        (["memory", "--repeats", "2"], "--repeats belongs to the stages, not to memory"),
        (["score", "--steps", "64"], "--steps belongs to bench finetune, not to score"),
        (["score", "--repeats", "0"], "--repeats must be at least 1, not 0"),
        (["score", "--cpus", "0"], "--cpus must lie in 1.."),
        (["finetune", "--sd15"], "--sd15 would take days on the CPUs of the shape laptop"),
        (["scaling", "--rows", "0"], "bench scaling takes sizes from 1, not 0"),
    ],
)
def test_mistakes_are_one_sentence(arguments, said, capsys):
    assert cli.main(["bench", *arguments]) == 2
    assert said in " ".join(capsys.readouterr().out.split())


def test_the_command_says_how_much_is_measured():
    options = arguments.parser().parse_args(["bench", "finetune", "--repeats", "3", "--steps", "96"])
    assert command.sizes_of(options) == replace(workload.FULL, repeats=3, finetune_steps=96)
    assert command.sizes_of(arguments.parser().parse_args(["bench", "--quick"])) == workload.QUICK


def test_a_gpu_that_is_not_there_is_one_sentence(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert cli.main(["bench", "score", "--shape", "workstation"]) == 2
    assert "PyTorch sees none here" in " ".join(capsys.readouterr().out.split())


def test_a_job_measures_its_machine_with_a_ray_of_its_own(monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert command.one_machine("laptop") == Shape(address="local")
    assert command.one_machine("laptop", 1) == Shape(address="local", num_cpus=1)
    assert "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ


@pytest.mark.parametrize(
    ("given", "sizes"),
    [
        ([], scaling.FULL),
        (["--quick"], scaling.QUICK),
        (["--quick", "--actors", "4", "2", "2", "--rows"], replace(scaling.QUICK, actors=(2, 4), rows=())),
    ],
)
def test_sizes_of_the_curves(given, sizes):
    assert command.curves(arguments.parser().parse_args(["bench", "scaling", *given])) == sizes


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_stage_once(tmp_path, short_ray_temp, capsys):
    file = tmp_path / "bench.json"
    assert cli.main(["bench", "all", "--quick", "--json", str(file)]) == 0
    record = json.loads(file.read_text())
    pairs = {pair["name"]: pair for pair in record["pairs"]}
    assert {name: pair["bar"] for name, pair in pairs.items()} == BARS
    for name, pair in pairs.items():
        assert GENEROUS < pair["efficiency"] < 1 / GENEROUS, (name, pair)
        assert pair["spread"][0] <= pair["efficiency"] <= pair["spread"][1]
        assert pair["pipeline"] > 0
        assert pair["bare"] > 0
    peers = {peer["name"]: peer for peer in record["peers"]}
    assert peers["full decode + resize"]["speedup"] > 1.3
    # A third of the solver steps, one pass of the ensemble, no PNG: far from noise.
    assert peers["published scheme, our steps, images"]["speedup"] > 1.2
    assert {"framework CPU", "start of Ray", "two bare trainings over one"} <= set(record["values"])
    text = file.with_suffix(".md").read_text()
    assert all(f"| {name} |" in text for name in BARS)
    assert "| ingest, phantoms |" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_scaling_in_small(tmp_path, short_ray_temp):
    file = tmp_path / "scaling.json"
    assert cli.main(["bench", "scaling", "--quick", "--json", str(file)]) == 0
    curves = json.loads(file.read_text())["scaling"]
    one, two = curves["actors"]
    assert (one["actors"], two["actors"]) == (1, 2)
    assert two["images_per_second"] > 1.3 * one["images_per_second"]
    small, large = curves["plan"]
    # Ten times the plan must not be ten times the driver.
    assert large["driver_rss_bytes"] < small["driver_rss_bytes"] + 300 * 2**20
    assert curves["tree"][-1]["rows"] == 6_400
    values = json.loads(file.read_text())["values"]
    assert 0 < values["driver's CPU a shard"]["value"] < 1000
    assert values["images a day on 1 H100"]["value"] <= 7 * 86_400
    assert (tmp_path / "scaling.actors.svg").read_text().startswith("<svg")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ingest_does_not_grow_with_its_rows(tmp_path, short_ray_temp):
    file = tmp_path / "memory.json"
    assert cli.main(["bench", "memory", "--json", str(file)]) == 0
    memory = json.loads(file.read_text())["scaling"]["memory"]
    assert memory["rows"] == 20_000
    # A worker holds one shard, whatever is behind it (seen: 400 bytes). The driver lists and settles all photographs:
    # their names, hashes and splits, no pixel (seen: 5,000 bytes each, while it decides; EyePACS's 88,702 are 450 MB).
    assert memory["worker"]["bytes_a_row"] < 1_000, memory["worker"]["peaks"]
    assert memory["driver"]["bytes_a_row"] < 8_000, memory["driver"]["peaks"]
    assert memory["worker"]["peaks"][1] < 500 * 2**20
