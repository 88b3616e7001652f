"""What is typed: help, versions and plans, and mistakes, each one sentence, exit code 2 and nothing written."""

import dataclasses
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from raydr import commands, recipes, shapes
from raydr.errors import BudgetExhausted

from .runs import STAGES, begun, content, sentence


def test_alone_it_explains_itself(raydr):
    code, printed = raydr()
    assert code == 0
    for word in (*STAGES, "demo", "report", "status", "verify", "repair"):
        assert f"  {word}" in printed


def test_the_version(raydr):
    assert raydr("--version") == (0, importlib.metadata.version("raydr") + "\n")


@pytest.mark.parametrize("command", ["run", *STAGES])
def test_help_lists_every_field_with_its_default(raydr, command):
    code, printed = raydr(command, "--help")
    assert code == 0
    assert "--out" in printed
    assert "--shape" in printed
    recipe = recipes.named("demo")
    fields = dataclasses.fields(recipe if command == "run" else getattr(recipe, command))
    for field in fields:
        assert f"--{field.name.replace('_', '-')}" in printed
    for field in dataclasses.fields(shapes.Shape):
        assert f"--shape.{field.name.replace('_', '-')}" in printed
    if command == "finetune":
        assert "0.001" in printed


@pytest.mark.parametrize("command", ["report", "status", "verify", "repair", "regenerate", "base", "submit", "doctor"])
def test_help_of_the_other_commands(raydr, command):
    code, printed = raydr(command, "--help")
    assert code == 0
    assert printed.startswith(f"usage: raydr {command}")


# -- what argparse and tyro refuse ------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv", [["synthesise"], ["status"], ["verify"], ["regenerate", "x"], ["watch", "x", "--port", "p"]]
)
def test_wrong_commands_and_missing_arguments(raydr, argv):
    code, printed = raydr(*argv)
    assert code == 2
    assert "error:" in printed


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["run", "--finetune.step", "3"], "--finetune.steps"),
        (["finetune", "--step", "3"], "--steps"),
        (["synthesize", "--acepted", "3"], "--accepted"),
        (["run", "--sed", "3"], "--seed"),
        (["sweep", "--num-seeds", "three"], "three"),
        (["run", "--ingest.crop"], "--ingest.crop"),
    ],
)
def test_a_misspelt_field_is_answered_with_a_suggestion(raydr, tmp_path, argv, words):
    code, printed = raydr(*argv, "--recipe", "debug", "--out", tmp_path / "out")
    assert code == 2
    assert words in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["run", "--ingest.px", "8"], "ingest.px must be at least 32, not 8"),
        (["synthesize", "--band", "0.9", "0.1"], "synthesize.band must satisfy 0 <= low < high <= 1, not (0.9, 0.1)"),
        (["run", "--seed", "900"], "seed must lie in 0..899, not 900"),
        (["ingest", "--seed=900"], "seed must lie in 0..899, not 900"),
    ],
)
def test_a_value_out_of_range_is_explained(raydr, tmp_path, argv, words):
    """In tyro's frame, since tyro builds the configuration."""
    code, printed = raydr(*argv, "--recipe", "debug", "--out", tmp_path / "out")
    assert code == 2
    assert words in " ".join(printed.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["status", "report", "verify"])
def test_unknown_options_of_plain_commands(raydr, tmp_path, command):
    code, printed = raydr(command, tmp_path, "--fast")
    assert code == 2
    assert "does not know '--fast'" in sentence(printed)


@pytest.mark.parametrize(
    "argv", [["evaluate", "out", "--on", "APTOS"], ["rescore", "out", "--ensemble", "e"]], ids=lambda argv: argv[0]
)
def test_commands_that_start_ray_take_fields_of_the_shape(raydr, monkeypatch, argv):
    asked = []
    monkeypatch.setitem(commands.COMMANDS, argv[0], lambda options: asked.append(options.shape) or 0)
    assert raydr(*argv, "--shape", "workstation", "--shape.trial-gpus", "1") == (0, "")
    assert asked == [dataclasses.replace(shapes.SHAPES["workstation"], trial_gpus=1.0)]
    code, printed = raydr(*argv, "--shape.trial-gpu", "1")
    assert code == 2
    assert "trial-gpus" in printed  # the suggestion
    assert raydr(*argv, "--fast")[0] == 2


# -- what the command line refuses ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (
            ["run", "--recipe", "demmo", "--out", "OUT"],
            "no recipe 'demmo': choose one of demo, debug, phantom, ddr_sd15",
        ),
        (["run", "--recipe", "debug"], "--out is missing"),
        (["ingest", "--recipe", "debug"], "--out is missing"),
        (["run", "--out", "OUT"], "holds no run yet: name a recipe with --recipe (demo, debug, phantom, ddr_sd15)"),
        (["sweep", "--out", "OUT"], "holds no run yet"),
        (["run", "--recipe", "debug", "--out", "OUT", "--shape", "pc"], "no shape 'pc': choose one of laptop, "),
        (["run", "--recipe", "debug", "--out", "ftp://host/x"], "--out takes a path, s3://bucket/prefix or gs://"),
        (
            ["run", "--recipe", "debug", "--out", "OUT", "--sweep.arms", "bandit"],
            "no arm 'bandit': choose from real_only",
        ),
        (["run", "--recipe", "debug", "--out", "OUT", "--finetune.kinds", "plain"], "finetune.kinds is ('plain',)"),
    ],
)
def test_a_mistake_is_one_sentence(raydr, tmp_path, argv, words):
    out = tmp_path / "out"
    code, printed = raydr(*[out if item == "OUT" else item for item in argv])
    assert code == 2
    assert words in sentence(printed)
    assert not out.exists(), "a mistake leaves nothing behind"


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_dry_run_prints_recipe_and_plan_and_writes_nothing(raydr, tmp_path, name):
    out = tmp_path / "out"
    code, printed = raydr("run", "--recipe", name, "--out", out, "--dry-run", "--sweep.num-seeds", "4")
    assert code == 0
    resolved = json.loads(printed[: printed.index("\nPlan")])
    assert resolved["name"] == name
    assert resolved["sweep"]["num_seeds"] == 4
    for stage in STAGES:
        assert f"{stage} " in printed
    assert printed.count("unmeasured") == 5
    assert not out.exists()


def test_a_stage_drops_its_prefix_and_takes_the_runs_own_fields(raydr, tmp_path):
    code, printed = raydr(
        "synthesize", "--recipe", "debug", "--out", tmp_path / "out", "--dry-run", "--accepted", "200",
        "--sampler.steps", "7", "--seed", "5", "--num_replicates=2", "--max-images", "4000",
    )  # fmt: skip
    assert code == 0
    resolved = json.loads(printed[: printed.index("\nPlan")])
    assert (resolved["synthesize"]["accepted"], resolved["synthesize"]["max_images"]) == (200, 4000)
    assert resolved["synthesize"]["sampler"]["steps"] == 7
    assert (resolved["seed"], resolved["num_replicates"]) == (5, 2)
    assert "ingest " not in printed[printed.index("\nPlan") :]


def test_later_commands_leave_the_recipe_out(raydr, tmp_path):
    begun(tmp_path, seed=5)
    before = content(tmp_path)
    code, printed = raydr("synthesize", "--out", tmp_path, "--dry-run", "--accepted", "9")
    assert code == 0
    resolved = json.loads(printed[: printed.index("\nPlan")])
    assert (resolved["name"], resolved["seed"], resolved["synthesize"]["accepted"]) == ("debug", 5, 9)
    assert content(tmp_path) == before


# -- exit codes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (
            BudgetExhausted("the budget ended before the quota [of 5]"),
            1,
            "raydr: the budget ended before the quota [of 5]",
        ),
        (KeyboardInterrupt(), 1, "what is committed is kept"),
    ],
)
def test_exit_code_one(raydr, monkeypatch, tmp_path, error, code, words):
    def fail(options):
        raise error

    monkeypatch.setitem(commands.COMMANDS, "status", fail)
    got, printed = raydr("status", tmp_path)
    assert got == code
    assert words in printed


def test_a_bug_keeps_its_traceback(raydr, monkeypatch, tmp_path):
    def fail(options):
        raise ZeroDivisionError

    monkeypatch.setitem(commands.COMMANDS, "status", fail)
    with pytest.raises(ZeroDivisionError):
        raydr("status", tmp_path)


@pytest.mark.parametrize(("shape", "code"), [("laptop", 0), ("pc", 2)])
def test_a_job_ends_with_the_commands_code(tmp_path, shape, code):
    root = Path(__file__).parents[2]
    argv = ["sweep.py", "--recipe", "debug", "--out", tmp_path / "out", "--shape", shape, "--dry-run"]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, *argv], capture_output=True, text=True, cwd=root / "jobs", env=environment)
    assert done.returncode == code
    assert done.stderr == ""
    assert ("sweep " if code == 0 else "no shape 'pc'") in done.stdout
