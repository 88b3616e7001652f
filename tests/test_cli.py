"""Every mistake a person can make on the command line: one sentence, exit code 2, nothing damaged, no Ray."""

import dataclasses
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from raydr import cli, commands, recipes, shapes
from raydr.errors import BudgetExhausted
from raydr.storage import Run

STAGES = ("ingest", "ensemble", "finetune", "synthesize", "sweep")


@pytest.fixture
def raydr(capsys):
    """Call the command line: (exit code, everything printed). A traceback would come through as an exception."""

    def call(*argv):
        try:
            code = cli.main([str(item) for item in argv])
        except SystemExit as stop:  # argparse and tyro leave this way
            code = stop.code or 0
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return call


@pytest.fixture
def no_ray(monkeypatch):
    from raydr.cluster import session

    def started(*arguments):
        raise AssertionError("Ray was started")

    monkeypatch.setattr(session, "session", started)


def begun(folder, name="debug", stages=("ingest",), **changes):
    """A run whose recipe is on disk and whose `stages` have begun."""
    from raydr.cluster import pipeline

    target = Run(folder)
    pipeline.open_run(dataclasses.replace(recipes.named(name), **changes), target)
    for stage in stages:
        pipeline.begin(target, stage)
    return target


def content(folder):
    """{path: bytes}; the lock's file comes and goes."""
    files = (path for path in Path(folder).rglob("*") if path.is_file() and path.name != "_lock")
    return {str(path): path.read_bytes() for path in files}


def sentence(printed):
    """The one line that a mistake leaves (a stage's header may stand before it)."""
    lines = [line for line in printed.splitlines() if line.startswith("raydr: ")]
    assert len(lines) == 1, printed
    return lines[0]


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


# -- a folder without a run, and damaged ones -------------------------------------------------------


@pytest.mark.parametrize(
    "argv",
    [
        ["status"],
        ["report"],
        ["verify"],
        ["repair"],
        ["audit"],
        ["regenerate", "g/g1/0", "--to", "image.png"],
    ],
    ids=lambda argv: argv[0],
)
@pytest.mark.parametrize("exists", [True, False])
def test_commands_about_a_run_on_a_folder_without_one(raydr, tmp_path, monkeypatch, argv, exists):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    if exists:
        out.mkdir()
        (out / "thesis.txt").write_text("not ours")
    code, printed = raydr(argv[0], out, *argv[1:])
    assert code == 2
    assert "There is no run in" in sentence(printed)
    assert content(tmp_path) == ({str(out / "thesis.txt"): b"not ours"} if exists else {})


@pytest.mark.parametrize("command", ["status", "verify", "repair", "report"])
@pytest.mark.parametrize("data", ["{", "{}", '{"recipe": {"name": "x", "unknown": 1}}'])
def test_a_damaged_recipe(raydr, tmp_path, command, data):
    (tmp_path / "recipe.json").write_text(data)
    code, printed = raydr(command, tmp_path)
    assert code == 2
    assert "recipe.json" in sentence(printed)
    assert content(tmp_path) == {str(tmp_path / "recipe.json"): data.encode()}


def test_status_of_a_run_that_has_just_begun(raydr, tmp_path):
    begun(tmp_path)
    code, printed = raydr("status", tmp_path)
    assert code == 0
    assert "172 phantoms" in printed
    assert raydr("verify", tmp_path)[0] == 0
    assert raydr("repair", tmp_path)[0] == 0


# -- what a run refuses before Ray starts -----------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "lacks"),
    [
        ("ensemble", "raydr ingest"),
        ("finetune", "raydr ingest"),
        ("synthesize", "raydr ingest"),
        ("sweep", "raydr ingest"),
    ],
)
def test_a_stage_before_its_inputs(raydr, no_ray, tmp_path, stage, lacks):
    code, printed = raydr(stage, "--recipe", "debug", "--out", tmp_path)
    assert code == 2
    assert lacks in sentence(printed)
    assert json.loads((tmp_path / "recipe.json").read_text())["begun"] == []


def test_stages_after_ingest_name_what_comes_next(raydr, no_ray, tmp_path):
    from raydr import shards

    target = begun(tmp_path)
    shards.complete(target, "real", [])
    assert "run `raydr ensemble` first" in sentence(raydr("finetune", "--out", tmp_path)[1])
    assert "run `raydr finetune` first" in sentence(raydr("synthesize", "--out", tmp_path)[1])
    assert "run `raydr synthesize` first" in sentence(raydr("sweep", "--out", tmp_path)[1])


def test_a_recipe_of_photographs_without_photographs(raydr, no_ray, tmp_path):
    code, printed = raydr("run", "--recipe", "ddr_sd15", "--out", tmp_path)
    assert code == 2
    assert "raydr ingest ddr PATH" in sentence(printed)


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_an_output_that_cannot_be_written(raydr, no_ray, tmp_path, out):
    (tmp_path / "file").write_text("precious")
    code, printed = raydr("run", "--recipe", "debug", "--out", tmp_path / out)
    assert code == 2
    assert str(tmp_path / "file") in sentence(printed)
    assert content(tmp_path) == {str(tmp_path / "file"): b"precious"}


@pytest.mark.parametrize(
    ("argv", "field", "before", "after"),
    [
        (["--recipe", "demo"], "ingest.px", "32", "64"),
        (["--recipe", "debug", "--seed", "2"], "seed", "1", "2"),
        (["--seed", "2"], "seed", "1", "2"),
        (["--recipe", "debug", "--fold", "1"], "fold", "None", "1"),
        (["--finetune.rank", "3"], "finetune.rank", "8", "3"),
        (["--synthesize.sampler.guidance", "5"], "synthesize.sampler", "2.0", "5.0"),
        (["--num-replicates", "2"], "num_replicates", "1", "2"),
    ],
)
def test_another_recipe_in_the_same_folder_names_field_and_values(raydr, no_ray, tmp_path, argv, field, before, after):
    begun(tmp_path, stages=STAGES)
    kept = content(tmp_path)
    code, printed = raydr("run", "--out", tmp_path, *argv)
    assert code == 2
    said = sentence(printed)
    assert f"{field} = " in said
    assert before in said
    assert after in said
    assert content(tmp_path) == kept


def test_what_has_not_begun_may_still_change(raydr, no_ray, tmp_path):
    """And quotas, arms and reports always: those runs get as far as Ray."""
    begun(tmp_path, stages=("ingest",))
    for argv in (["--finetune.rank", "3"], ["--synthesize.count", "64"], ["--sweep.num-seeds", "9"]):
        with pytest.raises(AssertionError, match="Ray was started"):
            raydr("run", "--out", tmp_path, *argv)
    stored = json.loads((tmp_path / "recipe.json").read_text())["recipe"]
    assert (stored["finetune"]["rank"], stored["synthesize"]["count"], stored["sweep"]["num_seeds"]) == (3, 64, 9)


def test_a_second_driver_is_refused(raydr, no_ray, tmp_path):
    with begun(tmp_path).lock("the first"):
        code, printed = raydr("run", "--out", tmp_path)
    assert code == 2
    assert "the first" in sentence(printed)


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
    root = Path(__file__).parent.parent
    argv = ["sweep.py", "--recipe", "debug", "--out", tmp_path / "out", "--shape", shape, "--dry-run"]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, *argv], capture_output=True, text=True, cwd=root / "jobs", env=environment)
    assert done.returncode == code
    assert done.stderr == ""
    assert ("sweep " if code == 0 else "no shape 'pc'") in done.stdout
