"""Copies of judged photographs among those that are learnt from: refused by every stage that learns, before Ray."""

import dataclasses

import pyarrow as pa
import pytest
from cluster.small_run import make_run, photograph, small_recipe

from raydr import cli, images, schema, shards
from raydr.cluster import ensemble, finetune, ingest, leaks, source_record, sweep
from raydr.cluster.pictures import Pictures
from raydr.errors import LeakageError
from raydr.fundus.phash import phash
from raydr.identity import sha256
from raydr.images import decode

RECIPE = small_recipe()
FOLDED = dataclasses.replace(RECIPE, fold=1)


def real(name, split, index, dataset="DDR", **columns):
    """A photograph that is no phantom, by its stratum."""
    return photograph(name, split, 3, index, dataset) | {"stratum": None} | columns


def copy_of(row, name, split, **columns):
    """The picture of `row` mirrored, as a JPEG of another size."""
    pixels = images.decode(row["image"], 40)[:, ::-1]
    data = images.jpeg(pixels, 40, quality=92)
    same = {"image": data, "sha256": sha256(data), "phash": phash(decode(data))}
    return row | {"image_id": f"{row['dataset']}/{name}", "split": split, "fold": None} | same | columns


@pytest.fixture
def made(tmp_path):
    """made(rows): a run with these photographs beside its phantoms."""

    def make(rows):
        run = make_run(tmp_path / "out", RECIPE)
        for number, row in enumerate(rows):
            key = f"real/more-{number}.parquet"
            shards.commit(run, key, pa.Table.from_pylist([row], schema.REAL), schema.REAL, key)
        return run

    return make


@pytest.mark.parametrize("stage", [ensemble, finetune, sweep])
@pytest.mark.parametrize("split", ["train", "prior", "validation"])
def test_a_copy_of_a_test_photograph_is_refused_by_every_stage_that_learns(made, stage, split):
    judged = real("judged", "test", 7001)
    run = made([judged, copy_of(judged, "copy", split), real("other", "prior", 7002)])
    said = (
        r"1 pictures .* first as DDR/copy \(\w+\) and DDR/judged \(test\).*--drop-duplicates into another --out, the "
        "source with the test photographs first"
    )
    for recipe in (RECIPE, FOLDED):
        with pytest.raises(LeakageError, match=said):
            stage.ready(recipe, run)


def test_the_prior_is_held_against_the_evaluated_fold(made):
    rows = [real(f"pool-{fold}", "train", 7100 + fold, fold=fold) for fold in range(3)]
    run = made([*rows, copy_of(rows[1], "copy", "prior", dataset="EyePACS")])
    leaks.refuse(RECIPE, run)  # in the official splits both are learnt from
    leaks.refuse(dataclasses.replace(RECIPE, fold=0), run)
    with pytest.raises(
        LeakageError, match=r"DDR/copy \(prior\) and DDR/pool-1 \(train, fold 1\).*validation of fold 1"
    ):
        leaks.refuse(FOLDED, run)


def test_a_copy_in_another_fold_is_refused_in_both_folds(made):
    first = real("pool-0", "train", 7200, fold=0)
    run = made([first, copy_of(first, "copy", "validation", fold=1)])
    for fold, refused in ((0, True), (1, True), (2, False)):
        if refused:
            with pytest.raises(LeakageError):
                leaks.refuse(dataclasses.replace(RECIPE, fold=fold), run)
        else:
            leaks.refuse(dataclasses.replace(RECIPE, fold=fold), run)


def test_what_judges_may_repeat_itself_and_external_sets_are_looked_at_when_they_are_used(made):
    judged, far = real("judged", "test", 7300), real("far", "external", 7301, "Messidor-2")
    run = made([judged, copy_of(judged, "again", "test"), far, copy_of(far, "near", "prior")])
    leaks.refuse(RECIPE, run)


def test_the_search_is_made_once_for_each_state_of_the_table(made, monkeypatch):
    run = made([real("a", "train", 7400), real("b", "test", 7401)])
    assert leaks.pairs_of(run) == []
    monkeypatch.setattr(leaks, "search", lambda *arguments: pytest.fail("searched again"))
    assert leaks.pairs_of(run) == []
    monkeypatch.undo()
    more = copy_of(real("b", "test", 7401), "c", "train")
    shards.commit(run, "real/more.parquet", pa.Table.from_pylist([more], schema.REAL), schema.REAL, "more")
    assert leaks.pairs_of(run) == [("DDR/b", "DDR/c")]


def test_a_file_that_is_there_twice_hides_no_copy(made):
    # The first of two equal files stands for both in the search: here it is an external one, the other is judged.
    far = real("a-far", "external", 7500, "A")
    run = made([far, far | {"image_id": "DDR/judged", "split": "test"}, copy_of(far, "copy", "prior")])
    assert len(leaks.pairs_of(run)) == 2
    with pytest.raises(LeakageError, match=r"A/copy \(prior\) and DDR/judged \(test\)"):
        leaks.refuse(RECIPE, run)


def test_phantoms_cost_no_look_at_a_picture(made, monkeypatch):
    run = made([])
    monkeypatch.setattr(Pictures, "_read", lambda *arguments: pytest.fail("a shard was read"))
    leaks.refuse(RECIPE, run)


def test_groups():
    assert leaks.alike([]) == []
    assert leaks.alike([(1, 2), (3, 4), (2, 3), (7, 6)]) == [[1, 2, 3, 4], [6, 7]]


def test_on_the_command_line_it_is_one_sentence_and_exit_2_before_ray(made, capsys, monkeypatch):
    from raydr.cluster import session

    judged = real("judged", "test", 7600)
    run = made([judged, copy_of(judged, "copy", "train")])
    monkeypatch.setattr(session, "session", lambda shape: pytest.fail("Ray was started"))
    run.replace_json("recipe.json", run.read_json("recipe.json") | {"begun": [], "fingerprints": {}})
    assert cli.main(["sweep", "--out", str(run.local)]) == 2
    said = " ".join(capsys.readouterr().out.split())
    assert "DDR/copy (train) and DDR/judged (test)" in said
    assert "Traceback" not in said


def test_an_external_source_leaves_what_was_learnt_as_it_is(tmp_path):
    """Photographs that finished graders only look at are outside the identity of ensembles, generators and trials."""
    run = make_run(tmp_path / "out", RECIPE)
    before, whole = ingest.fingerprint_of(run), ingest.fingerprint_of(run, external=True)
    for dataset, role in (("Tours", "external"), ("Lyon", "prior")):
        key = source_record.shard_key("real", dataset, 0)
        row = real(dataset, role, 7, dataset)
        shards.commit(run, key, pa.Table.from_pylist([row], schema.REAL), schema.REAL, key)
        source = source_record.Source("folder", dataset, role, {"shard_size": 64}, 1, 0, "")
        source_record.store(run, source_record.Record(source, []))
        assert (ingest.fingerprint_of(run) == before) == (role == "external")
        assert ingest.fingerprint_of(run, external=True) != whole
