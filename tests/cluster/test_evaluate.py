"""`raydr evaluate`, `export` and `ensemble import`: other data sets, leaks refused, graders that travel."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
import torch
from cluster.small_run import make_run, photograph, results, small_recipe

from raydr import cli, images, metrics, schema, shards
from raydr.cluster import evaluate, external, source_record, sweep, trial_node, trial_run
from raydr.errors import LeakageError, MissingInput, UserError
from raydr.fundus.phash import phash
from raydr.identity import sha256
from raydr.images import decode
from raydr.storage import Run
from raydr.trials import plan

RECIPE = small_recipe(num_seeds=2, keep_weights=("oversampling", "band"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with two kept arms of two seeds each."""
    run = make_run(tmp_path_factory.mktemp("evaluate") / "out", RECIPE)
    ids = []
    for trial in plan(RECIPE, trial_node.read_tables(RECIPE, run)).trials:
        ids.append(trial.trial_id(RECIPE, sweep.inputs_of(RECIPE, run, trial.arm)))
        trial_run.run(RECIPE, run, trial, ids[-1], lambda event: None, 1, False)
    run.replace_json("trials/plan.json", {"trial_ids": ids})
    return run


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another run: its photographs have other bytes."""
    rows = []
    rng = np.random.default_rng(0)
    for grade in range(5):
        for k in range(4):
            data = images.encode(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8))
            row = dict.fromkeys(schema.REAL.names)
            row |= {"image_id": f"DDR/{grade}-{k}", "dataset": "DDR", "split": "test", "grade": grade, "image": data}
            rows.append(row | {"width": 32, "height": 32, "sha256": sha256(data), "phash": f"{grade:x}{k:x}" * 8})
    found = Run(str(tmp_path_factory.mktemp("other") / "elsewhere"))
    found.replace_json("recipe.json", {"recipe": dataclasses.asdict(RECIPE)})
    shards.commit(found, "real/000000.parquet", pa.Table.from_pylist(rows, schema.REAL), schema.REAL, "real")
    return found


def done(run, token, arms=()):
    found = evaluate.external_set(run, token)
    graders = evaluate.graders(RECIPE, run, arms)
    for grader in graders:
        evaluate.evaluate_one(RECIPE, run, grader, found, False, 1)
    external.describe(run, found.key, found.rows, found.num_excluded)
    return found, graders, external.write(RECIPE, run)


def test_every_kept_grader_and_the_ensemble_judge_an_external_set(run):
    found, graders, numbers = done(run, "idrid")
    assert sorted(grader.arm for grader in graders) == ["band", "band", "ensemble", "oversampling", "oversampling"]
    assert set(numbers["IDRID"]) == {"band", "ensemble", "oversampling"}
    table = shards.read(run, f"evaluations/{found.key}", schema.PREDICTIONS).to_pylist()
    assert len(table) == 5 * 15
    assert {row["split"] for row in table} == {"external"}
    values = []
    for row in results(run):
        if row["arm"] == "band":
            mine = [item for item in table if item["trial_id"] == row["trial_id"]]
            grades, predictions = (np.array([item[name] for item in mine]) for name in ("grade", "prediction"))
            values.append(metrics.balanced_accuracy(metrics.confusion(grades, predictions)))
    band = numbers["IDRID"]["band"]
    assert band["balanced_accuracy"]["mean"] == pytest.approx(np.mean(values))
    assert band["balanced_accuracy"]["std"] == pytest.approx(np.std(values, ddof=1))
    assert (band["num_images"], band["num_graders"]) == (15, 2)
    base = numbers["IDRID"]["oversampling"]
    difference = band["balanced_accuracy"]["mean"] - base["balanced_accuracy"]["mean"]
    assert band["over_baseline"]["difference"] == pytest.approx(difference)
    assert band["over_baseline"]["low"] <= difference <= band["over_baseline"]["high"]
    assert base["over_baseline"] is None
    assert run.read_json("report/external.json") == numbers


def test_another_run_is_an_external_set_and_nothing_is_written_there(run, other):
    before = sorted(other.list())
    found, _, numbers = done(run, other.url, ("band",))
    assert found.rows.num_rows == 20
    assert set(numbers["elsewhere"]) == {"band"}
    assert numbers["elsewhere"]["band"]["over_baseline"] is None
    assert sorted(other.list()) == before


def test_photographs_that_a_run_learns_from_are_refused(run, tmp_path):
    # The same cohort under another folder: its test set is external to nobody, its training set was learnt from.
    twin = make_run(tmp_path / "twin", RECIPE)
    assert evaluate.external_set(run, twin.url).rows.num_rows == 55  # test and external photographs: not learnt from
    row = shards.read(run, "real", schema.REAL).to_pylist()[0] | {"split": "external", "dataset": "odd"}
    row["image_id"] = "odd/1"
    shards.commit(run, "real/odd.parquet", pa.Table.from_pylist([row], schema.REAL), schema.REAL, "odd")
    try:
        with pytest.raises(LeakageError, match="--on odd: 1 of 1 photographs are among those"):
            evaluate.external_set(run, "odd")
    finally:
        for key in ("real/odd.parquet", shards.record_key("real/odd.parquet")):
            run.delete(key)


@pytest.fixture
def added(run):
    """added(rows): rows of `real` beside those of the run, for the time of a test."""
    keys = []

    def add(rows):
        keys.append(f"real/added-{len(keys)}.parquet")
        shards.commit(run, keys[-1], pa.Table.from_pylist(rows, schema.REAL), schema.REAL, keys[-1])

    yield add
    for key in keys:
        run.delete(key)
        run.delete(shards.record_key(key))


def external_rows(dataset, **columns):
    """Ten photographs of no phantom, of an external set: two patients to a grade, two sources."""
    rows = []
    for grade in range(5):
        for k in range(2):
            row = photograph(f"{dataset}-{grade}-{k}", "external", grade, 5000 + 10 * grade + k, dataset)
            rows.append(row | {"patient_id": f"{dataset}/{k}", "stratum": ("Brest", "Paris")[k]} | columns)
    return rows


def test_a_set_is_named_by_its_reader_or_in_any_spelling(run, added):
    added(external_rows("Messidor-2"))
    for token in ("messidor2", "Messidor-2", "MESSIDOR_2"):
        assert evaluate.external_set(run, token).name == "Messidor_2"
    # Under a name of its own, --dataset, the source's record tells the reader.
    added(external_rows("Tours"))
    source = source_record.Source("deepdrid", "Tours", "external", {"shard_size": 64}, 10, 0, "")
    source_record.store(run, source_record.Record(source, []))
    try:
        assert evaluate.external_set(run, "deepdrid").name == evaluate.external_set(run, "tours").name == "Tours"
        added(external_rows("TOURS."))
        with pytest.raises(UserError, match=r"--on tours may mean TOURS\. or Tours: write the name out"):
            evaluate.external_set(run, "tours")
        assert evaluate.external_set(run, "Tours").name == "Tours"
    finally:
        run.delete(source_record.record_key("Tours"))


def test_copies_of_what_was_learnt_from_are_left_out_and_counted(run, added, tmp_path):
    learnt = photograph("learnt", "prior", 3, 7000, "EyePACS") | {"stratum": None}
    added([learnt])
    rows = external_rows("Brest")
    pixels = decode(learnt["image"])[:, ::-1]  # a mirrored JPEG copy
    copy = images.jpeg(pixels, 32, quality=90)
    rows.append(rows[0] | {"image_id": "Brest/copy", "image": copy, "sha256": sha256(copy), "phash": phash(pixels)})
    added(rows)
    found = evaluate.external_set(run, "brest")
    assert (found.rows.num_rows, found.num_excluded) == (10, 1)
    assert "Brest/copy" not in found.rows["image_id"].to_pylist()
    # The same set in a run of its own.
    elsewhere = Run(str(tmp_path / "brest"))
    elsewhere.replace_json("recipe.json", {"recipe": dataclasses.asdict(RECIPE)})
    shards.commit(elsewhere, "real/0.parquet", pa.Table.from_pylist(rows, schema.REAL), schema.REAL, "real")
    there = evaluate.external_set(run, elsewhere.url)
    assert (there.rows.num_rows, there.num_excluded) == (10, 1)
    added([rows[-1] | {"image_id": "Copies/1", "dataset": "Copies"}])
    with pytest.raises(LeakageError, match="every photograph shows the same picture"):
        evaluate.external_set(run, "Copies")


def test_an_external_interval_draws_patients_and_strata_are_told_apart(run, added):
    added(external_rows("Vienna"))
    found, graders, numbers = done(run, "Vienna")
    band = numbers["Vienna"]["band"]
    assert [(part["stratum"], part["num_images"]) for part in band["strata"]] == [("Brest", 5), ("Paris", 5)]
    table = shards.read(run, f"evaluations/{found.key}", schema.PREDICTIONS).to_pylist()
    mine = {grader.grader_id for grader in graders if grader.arm == "band"}
    right = [[row["grade"] == row["prediction"] for row in table if row["trial_id"] == one
              and row["image_id"].endswith("-1")] for one in mine]  # fmt: skip
    assert band["strata"][1]["balanced_accuracy"]["mean"] == pytest.approx(np.mean(right))
    about = run.read_json(f"evaluations/{found.key}.json")
    assert about["photographs"]["Vienna/Vienna-2-1"] == ["Vienna/1", "Paris"]

    # Two photographs of one patient say as much as one: their interval is the one of half as many photographs.
    def over(photographs):
        grades = np.repeat(np.arange(5), 40)
        made = {}
        for arm, wrong in (("band", []), ("oversampling", [40, 41, 48, 49, 56, 57, 64, 65])):
            predictions = grades.copy()
            predictions[wrong] = 0
            rows = [evaluation(f"i{k:03d}", grades[k], predictions[k]) for k in range(200)]
            made[arm] = [(0, 0, pa.Table.from_pylist(rows, schema.PREDICTIONS))]
        return external._over(made, "band", RECIPE, {"photographs": photographs})

    alone = over({})
    pairs = over({f"i{k:03d}": [f"p{k // 2}", None] for k in range(200)})
    assert pairs["difference"] == alone["difference"]
    ratio = (pairs["high"] - pairs["low"]) / (alone["high"] - alone["low"])
    assert ratio == pytest.approx(2**0.5, rel=0.15)


def evaluation(image_id, grade, prediction):
    row = {"trial_id": "t", "split": "external", "image_id": image_id, "grade": grade, "prediction": prediction}
    return row | {"probabilities": [0.2] * 5}


def test_what_is_not_there_is_one_sentence(run):
    with pytest.raises(
        UserError, match=r"no graded data set of this name.*\(it has IDRID\): run `raydr ingest messidor2"
    ):
        evaluate.external_set(run, "messidor2")
    with pytest.raises(UserError, match="there is no run"):
        evaluate.external_set(run, "/nowhere/at/all")
    with pytest.raises(
        MissingInput, match=r"keeps no trained grader of arm 'naive': run `raydr sweep .*--keep-weights naive"
    ):
        evaluate.graders(RECIPE, run, ("naive",))


def test_an_exported_arm_is_its_best_on_validation_and_works_alone(run, tmp_path, capsys):
    to = tmp_path / "grader"
    assert cli.main(["export", str(run.local), "band", "--to", str(to), "--notes", "Made by a test."]) == 0
    assert sorted(path.name for path in to.iterdir()) == ["README.md", "grader.json", "model.safetensors"]
    assert "Made by a test." in (to / "README.md").read_text()
    assert "phantoms" in (to / "README.md").read_text()
    rows = [row for row in results(run) if row["arm"] == "band"]
    best = max(rows, key=lambda row: (row["validation_balanced_accuracy"], f"trials/graders/{row['trial_id']}"))
    photograph = next(row for row in shards.read(run, "real", schema.REAL).to_pylist() if row["split"] == "test")
    (tmp_path / "photograph.webp").write_bytes(photograph["image"])
    code = (
        "from raydr.grading.evaluate import load_grader\n"
        f"grader = load_grader({str(to)!r})\n"
        f"probabilities = grader({str(tmp_path / 'photograph.webp')!r})\n"
        "import sys; assert 'ray' not in sys.modules; print(*probabilities)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    table = shards.read(run, "trials/predictions", schema.PREDICTIONS).to_pylist()
    (expected,) = [
        row["probabilities"]
        for row in table
        if (row["trial_id"], row["image_id"]) == (best["trial_id"], photograph["image_id"])
    ]
    np.testing.assert_allclose(np.array(said.split(), float), expected, atol=1e-5)
    assert decode(photograph["image"]).shape == (32, 32, 3)
    assert cli.main(["export", str(run.local), "band", "--to", str(to)]) == 2
    assert "is not empty" in " ".join(capsys.readouterr().out.split())
    assert cli.main(["export", str(run.local), "nobody", "--to", str(tmp_path / "x")]) == 2
    assert cli.main(["export", str(run.local), "00-test_resnet-f0", "--to", str(tmp_path / "member")]) == 0


def test_a_published_checkpoint_is_imported_on_the_command_line(tmp_path, capsys):
    from grading.test_checkpoints import published

    from raydr.grading.ensemble import load_member

    model, state = published("resnet50")
    torch.save({"net": state, "acc": 0.8}, tmp_path / "best.pth")
    command = ["ensemble", "import", str(tmp_path / "best.pth"), "--backbone", "resnet50", "--px", "96"]
    assert cli.main([*command, "--to", str(tmp_path / "members")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "tensors fit" in said
    assert "cannot" not in said
    loaded, meta = load_member(tmp_path / "members" / "resnet50-best")
    assert meta.provenance == "imported"
    images = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))
    assert cli.main([*command, "--to", str(tmp_path / "members")]) == 2
    assert "is there already" in " ".join(capsys.readouterr().out.split())
    del state["module.reduce_dim.weight"]
    state["module.extra"] = torch.zeros(2)
    torch.save({"net": state}, tmp_path / "best.pth")
    assert cli.main([*command, "--to", str(tmp_path / "other")]) == 2
    said = " ".join(capsys.readouterr().out.split())
    assert "does not fit LANet on resnet50" in said
    assert "1 missing from the file: net.reduce_dim.weight" in said
    assert "1 in the file but not in the model: extra" in said
    assert not (tmp_path / "other" / "resnet50-best").exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_evaluate_under_ray_then_again_without(run, ray_temp, capsys):
    for key, _ in [item for prefix in ("evaluations", "_commits/evaluations") for item in run.list(prefix)]:
        run.delete(key)
    assert cli.main(["evaluate", str(run.local), "--on", "IDRID", "--arm", "band", "oversampling"]) == 0
    said = capsys.readouterr().out
    assert "IDRID: 15 photographs" in said
    assert len(shards.commits(run, "evaluations")) == 4
    numbers = json.loads(run.read("report/external.json"))
    assert set(numbers["IDRID"]) == {"band", "oversampling"}
    assert cli.main(["evaluate", str(run.local), "--on", "IDRID", "--arm", "band"]) == 0
    assert json.loads(run.read("report/external.json")) == numbers
