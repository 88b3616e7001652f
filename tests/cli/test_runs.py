"""Runs that are absent, damaged, unfinished or another's: one sentence, exit code 2, nothing damaged, no Ray."""

import json

import pytest

from raydr.storage import Run

from .runs import STAGES, begun, content, sentence

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


@pytest.mark.parametrize("argv", [["repair"], ["gc", "--yes"]], ids=lambda argv: argv[0])
@pytest.mark.parametrize("held", [".", "replicate-1"])
def test_what_deletes_waits_for_a_driver_of_the_run_or_of_a_replicate(raydr, tmp_path, argv, held):
    begun(tmp_path, num_replicates=2)
    with Run(str(tmp_path / held)).lock("the first"):
        code, printed = raydr(argv[0], tmp_path, *argv[1:])
    assert code == 2
    assert "the first" in sentence(printed)


def test_a_refused_change_to_a_run_of_replicates_changes_nothing(raydr, no_ray, tmp_path):
    begun(tmp_path, stages=(), num_replicates=2)
    for place in ("replicate-0", "replicate-1"):
        begun(tmp_path / place, stages=("ingest", "finetune"))
    before = (tmp_path / "recipe.json").read_bytes()
    for field, value in (("--finetune.rank", "9"), ("--seed", "9"), ("--num-replicates", "1")):
        code, printed = raydr("run", "--out", tmp_path, field, value)
        assert code == 2
        assert "was made with" in sentence(printed)
        assert (tmp_path / "recipe.json").read_bytes() == before


def test_a_second_driver_is_refused(raydr, no_ray, tmp_path):
    with begun(tmp_path).lock("the first"):
        code, printed = raydr("run", "--out", tmp_path)
    assert code == 2
    assert "the first" in sentence(printed)
