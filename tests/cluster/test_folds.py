"""Replicates on real photographs: the chain over folds, on one ingested table, to a table of arms with its claim."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from cluster.small_run import add_members, add_samples, changed, photograph, results, small_recipe
from s3_server import serve

from raydr import cli, schema, selection, shards
from raydr.cluster import folds, leaks, pipeline, sweep, trial_node, trial_run
from raydr.errors import IdentityMismatch, MissingInput, UserError
from raydr.record import replicates
from raydr.report import page
from raydr.storage import Run
from raydr.trials import plan

RECIPE = changed(small_recipe(arms=("oversampling", "band"), band=(0.0, 1.0)), ingest={"source": "ddr", "phantoms": ()})
RECIPE = dataclasses.replace(RECIPE, fold=0, num_replicates=3)


def commit(run, name, rows):
    shards.commit(run, f"real/{name}.parquet", pa.Table.from_pylist(rows, schema.REAL), schema.REAL, name)
    shards.complete(run, "real", list(shards.commits(run, "real")))


@pytest.fixture
def run(tmp_path):
    """Photographs as `raydr ingest ddr` leaves them: a pool in three folds of two a grade, and a test set."""
    run = Run(str(tmp_path / "out"))
    pipeline.open_run(RECIPE, run)
    rows = []
    for grade, more in enumerate((12, 2, 8, 1, 3)):
        for k in range(6 + more):
            row = photograph(f"pool-{grade}-{k}", "train" if k % 2 else "validation", grade, 100 * grade + k)
            rows.append(row | {"fold": k % 3 if k < 6 else None})
        rows += [photograph(f"test-{grade}-{k}", "test", grade, 100 * grade + k) for k in range(4)]
    commit(run, "DDR-000000", rows)
    return run


def test_each_replicate_evaluates_a_fold_of_its_own_on_the_same_files(run):
    parts = replicates(RECIPE, run)
    assert [(part.fold, part.replicate, part.num_replicates) for part, _ in parts] == [(0, 0, 1), (1, 1, 1), (2, 2, 1)]
    folds.share(RECIPE, run, parts)
    held = []
    for part, place in parts:
        assert shards.completed(place, "real") == shards.completed(run, "real")
        assert place.path("real/DDR-000000.parquet").samefile(run.path("real/DDR-000000.parquet"))
        real = shards.read(place, "real", schema.REAL)
        held.append({real["image_id"][k].as_py() for k in selection.part_of(real, "validation", part.fold)})
        assert len(held[-1]) == 10
    assert not (held[0] & held[1] | held[0] & held[2] | held[1] & held[2])
    # What is added later follows, and a replicate that loses its link harms nobody.
    commit(run, "Messidor-2-000000", [photograph("m", "external", 2, 9000, "Messidor-2")])
    parts[1][1].delete("real/DDR-000000.parquet")
    folds.share(RECIPE, run, parts)
    assert all(shards.read(place, "real", schema.REAL, ["split"]).num_rows == 77 for _, place in (parts[0], parts[2]))
    assert run.exists("real/DDR-000000.parquet")


def test_in_a_bucket_the_photographs_are_copied():
    with serve():
        run = Run("s3://bucket/out")
        commit(run, "DDR-000000", [photograph(f"p-{k}", "train", 2, k) | {"fold": k} for k in range(3)])
        parts = replicates(RECIPE, run)
        folds.share(RECIPE, run, parts)
        folds.share(RECIPE, run, parts)
        for _, place in parts:
            assert shards.verify(place) == []
            assert shards.completed(place, "real") == shards.completed(run, "real")
            assert shards.read(place, "real", schema.REAL).num_rows == 3


def test_what_cannot_be_repeated_is_one_sentence(run, tmp_path):
    many = dataclasses.replace(RECIPE, num_replicates=5)
    with pytest.raises(UserError, match=r"replicate 3 is to evaluate fold 3, and .* has folds 0 to 2: lower"):
        folds.share(many, run, replicates(many, run))
    empty = Run(str(tmp_path / "empty"))
    with pytest.raises(MissingInput, match=r"run `raydr ingest ddr PATH .*--out \S+/empty` first"):
        folds.share(RECIPE, empty, replicates(RECIPE, empty))


def test_how_often_photographs_are_used_may_be_said_after_their_ingest(run):
    pipeline.begin(run, "ingest")
    pipeline.open_run(dataclasses.replace(RECIPE, num_replicates=2), run)
    pipeline.begin(run, "ensemble")
    with pytest.raises(IdentityMismatch, match="num_replicates = 2 and now 3"):
        pipeline.open_run(RECIPE, run)


def test_three_folds_make_a_claim_and_the_page_says_what_varied(run):
    parts = replicates(RECIPE, run)
    folds.share(RECIPE, run, parts)
    for part, place in parts:
        pipeline.open_run(part, place)
        leaks.refuse(part, place)
        add_members_of(part, place)
        ids = []
        for trial in plan(part, trial_node.read_tables(part, place)).trials:
            ids.append(trial.trial_id(part, sweep.inputs_of(part, place, trial.arm)))
            trial_run.run(part, place, trial, ids[-1], lambda event: None, 1, False)
        place.replace_json("trials/plan.json", {"trial_ids": ids, "left_out": {}})
        assert {row["fold"] for row in results(place)} == {part.fold}
    html, found = page.render(run, run.read_json("recipe.json")["recipe"])
    assert (found["num_replicates"], found["shared_test_images"], found["partial"]) == (3, True, False)
    row = next(row for row in found["table"] if row["arm"] == "band")
    assert (row["num_replicates"], row["num_trials"]) == (3, 3)
    per_fold = [r["balanced_accuracy"] for _, place in parts for r in results(place) if r["arm"] == "band"]
    assert row["metrics"]["balanced_accuracy"]["mean"] == pytest.approx(np.mean(per_fold))
    assert row["metrics"]["balanced_accuracy"]["std"] == pytest.approx(np.std(per_fold, ddof=1))
    primary = [c for c in found["contrasts"] if c["family"] == "primary"]
    assert [(c["a"], c["num_replicates"], c["conditional_on"]) for c in primary] == [("band", 3, None)]
    said = "Between the replicates differ the evaluated fold and the seeds of ensemble, generators and graders"
    assert any(sentence.startswith(said) for sentence in found["answer"]["caveats"])
    assert said in html


def add_members_of(part, place):
    """Members that have seen the pool without the part's fold, and samples of its generators."""
    from raydr.cluster import ensemble

    add_members(place, part)
    add_samples(place, part, 12)
    ensemble.load(part, place, ensemble.identity(part, place))  # refuses members that saw the fold


def test_the_command_line_takes_replicates_of_photographs(tmp_path, capsys):
    out = str(tmp_path / "out")
    assert cli.main(["ingest", "ddr", "/nowhere", "--recipe", "ddr_sd15", "--num-replicates", "5", "--out", out]) == 2
    assert "/nowhere does not exist" in " ".join(capsys.readouterr().out.split())
    assert cli.main(["run", "--recipe", "ddr_sd15", "--num-replicates", "5", "--out", out]) == 2
    assert "holds no photographs yet" in " ".join(capsys.readouterr().out.split())
