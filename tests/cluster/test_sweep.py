"""The sweep under Ray Tune: it grows by new trials alone, one failure costs one trial, kills change nothing."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from cluster.small_run import add_samples, changed, make_run, recomputed, results, small_recipe
from ray.tune.search import Searcher

from raydr import schema, shards
from raydr.cluster import search, session, sweep
from raydr.errors import UserError
from raydr.graders import Axes, Search
from raydr.shapes import Shape
from raydr.storage import Run

SHAPE = Shape(num_cpus=2, dashboard=False, max_failures=0)


def table(run):
    """What a sweep leaves, without the seconds that it took."""
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in results(run)]
    predictions = shards.read(run, "trials/predictions", schema.PREDICTIONS).to_pylist()
    return rows, sorted(predictions, key=lambda row: (row["trial_id"], row["split"], row["image_id"]))


@pytest.mark.timeout(240)
def test_a_sweep_grows_by_the_new_trials_and_one_failure_is_not_fatal(tmp_path, ray_temp):
    recipe = small_recipe(keep_weights=("band",))
    run = make_run(tmp_path / "out", recipe)
    with session.session(SHAPE):
        assert sweep.run(recipe, run, SHAPE) == {"trials": 3, "run": 3, "failed": []}
        first = results(run)
        assert [row["arm"] for row in first] == ["band", "naive", "oversampling"]
        for row in first:
            assert recomputed(run, row) == pytest.approx(row["balanced_accuracy"], abs=1e-6)
        axes = Axes(losses=("focal=1", "ldam@instance"), backbones=(), arms=("band",))
        grown = changed(recipe, sweep={"axes": axes, "arms": (*recipe.sweep.arms, "probe")})
        assert sweep.run(grown, run, SHAPE) == {"trials": 6, "run": 3, "failed": []}
        # inception_v3 needs 75 px: its trials fail, each by itself.
        failing = changed(grown, sweep={"axes": Axes(backbones=("inception_v3",), arms=("naive",))})
        found = sweep.run(failing, run, SHAPE)
        assert (found["trials"], found["run"], len(found["failed"])) == (5, 1, 1)
    rows = results(run)
    assert [row for row in rows if row["trial_id"] in {old["trial_id"] for old in first}] == first
    variants = {(row["loss"], row["loss_parameter"], row["sampler"]) for row in rows if row["arm"] == "band"}
    assert variants == {("ce", 0, "balanced"), ("focal", 1, "balanced"), ("ldam", 0, "instance")}
    (told,) = json.loads(run.read(sweep.FAILED)).values()
    assert told["arm"] == "naive"
    assert "inception_v3 needs images of at least 75 px" in told["reason"]
    kept = [key for key, _ in run.list("trials/graders") if key.endswith("_done.json")]
    assert len(kept) == 3


def test_what_cannot_be_trained_is_refused_before_ray_starts(tmp_path):
    recipe = small_recipe(axes=Axes(backbones=("resnet999",)))
    run = make_run(tmp_path / "out", recipe)
    with pytest.raises(UserError, match="neither timm nor torchvision has a backbone 'resnet999'"):
        sweep.run(recipe, run, SHAPE)
    with pytest.raises(UserError, match="no ecc_w0 samples of this recipe: run `raydr synthesize`"):
        sweep.run(small_recipe(arms=("oversampling", "ecc_w0")), run, SHAPE)


def test_a_control_leaves_the_ids_of_all_other_trials(tmp_path):
    recipe = small_recipe()
    run = make_run(tmp_path / "out", recipe)
    before = {name: sweep.inputs_of(recipe, run, name) for name in ("oversampling", "band", "ecc")}
    grown = changed(recipe, finetune={"kinds": ("plain", "ecc", "ecc_w0"), "grades": (0, 1, 2, 3, 4)})
    add_samples(run, grown, 4)
    assert {name: sweep.inputs_of(grown, run, name) for name in before} == before
    others = {sweep.inputs_of(grown, run, name) for name in ("ecc_w0", "all_grades")}
    assert len(others) == 2
    assert not others & set(before.values())


class Fixed(Searcher):
    """A searcher of Ray's interface: suggests set rates, and notes what it is told in a file."""

    RATES = (0.001, 0.002, 0.003, 0.004)

    def __init__(self, metric=None, mode=None):
        super().__init__(metric=metric, mode=mode)
        self._told = []

    def set_search_properties(self, metric, mode, config, **spec):
        self._constant = {name: value for name, value in config.items() if not hasattr(value, "sample")}
        return True

    def suggest(self, trial_id):
        left = [rate for rate in self.RATES if rate not in self._told]
        if not left:
            return Searcher.FINISHED
        self._told.append(left[0])
        return self._constant | {"learning_rate": left[0], "weight_decay": 0.01}

    def on_trial_complete(self, trial_id, result=None, error=False):
        assert error or "validation_balanced_accuracy" in result

    def add_evaluated_point(self, parameters, value, error=False, pruned=False, intermediate_values=None):
        self._told.append(parameters["learning_rate"])


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_search_stays_inside_its_arm_and_resumes(tmp_path, ray_temp, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.path.dirname(os.path.dirname(__file__)), *sys.path]))
    grader = dataclasses.replace(small_recipe().sweep.grader, steps=20)
    recipe = small_recipe(
        arms=("oversampling",), grader=grader, search=Search("naive", 4, learning_rate=(1e-3, 1e-1), asha=True)
    )
    run = make_run(tmp_path / "out", recipe)
    with session.session(SHAPE):
        found = sweep.run(recipe, run, SHAPE)
        assert (found["run"], found["failed"]) == (5, [])
        rows = [row for row in results(run) if row["purpose"] == "search"]
        records = [json.loads(run.read(key)) for key, _ in run.list("trials/search")]
        stopped = [record for record in records if record.get("stopped")]
        assert len(records) == 4
        assert len(rows) + len(stopped) == 4
        assert all(record["history"] for record in records)
        assert {row["arm"] for row in rows} == {"naive"}
        assert all(row["balanced_accuracy"] is None for row in rows), "a search never sees the test set"
        assert len({record["values"].get("learning_rate") for record in records}) >= 1
        assert len({row["learning_rate"] for row in rows}) == len(rows)
        assert sweep.run(recipe, run, SHAPE)["run"] == 0
        # Two more draws of the same search; then a searcher of another kind, cut short and resumed.
        more = changed(recipe, sweep={"search": dataclasses.replace(recipe.sweep.search, num_trials=6)})
        assert sweep.run(more, run, SHAPE)["run"] == 2
        other = Search("naive", 2, searcher="cluster.test_sweep:Fixed")
        two = changed(recipe, sweep={"search": other})
        assert sweep.run(two, run, SHAPE)["run"] == 2
        four = changed(recipe, sweep={"search": dataclasses.replace(other, num_trials=4)})
        assert sweep.run(four, run, SHAPE)["run"] == 2
    rates = sorted(round(row["learning_rate"], 6) for row in results(run) if row["purpose"] == "search")
    assert set(Fixed.RATES) <= set(rates)
    assert [rates.count(rate) for rate in Fixed.RATES] == [1, 1, 1, 1], "what was known is not asked for again"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("optunna", "Ray Tune has no 'optunna': use random, "),
        ("optuna", "'optuna' cannot be made .*install the package"),
        ("no.such.module:Class", "cannot be made"),
        ("raydr.storage:Run", "cannot be made"),
        ("variant_generator", "cannot be made|is no searcher of Ray Tune's"),
    ],
)
def test_a_searcher_that_is_none_is_one_sentence(name, words):
    with pytest.raises(UserError, match=words):
        search._searcher(small_recipe(search=Search("naive", 2, searcher=name)), [])


def test_a_searcher_is_told_what_is_known():
    recipe = small_recipe(search=Search("naive", 4, searcher="cluster.test_sweep:Fixed"))
    known = [{"values": {"learning_rate": 0.002, "loss": None}, "history": [[2, 0.3]], "value": 0.4}]
    found = search._searcher(recipe, known)
    assert found._told == [0.002]
    assert found.metric == "validation_balanced_accuracy"


DRIVER = """
import sys
from cluster.small_run import small_recipe
from raydr.cluster import search, session, sweep
from raydr.shapes import Shape
import dataclasses
recipe = small_recipe(num_seeds=4)
grader = dataclasses.replace(recipe.sweep.grader, steps=120)
recipe = dataclasses.replace(recipe, sweep=dataclasses.replace(recipe.sweep, grader=grader))
shape = Shape(num_cpus=2, dashboard=False)
with session.session(shape):
    print(sweep.run(recipe, sys.argv[1], shape), flush=True)
"""


def driver(out):
    """A sweep in a process of its own; what it says of errors is beside `out`, in a file."""
    paths = [os.path.dirname(os.path.dirname(__file__)), os.path.dirname(os.path.dirname(os.path.dirname(__file__)))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    with open(f"{out}.err", "a") as errors:
        return subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(out)], start_new_session=True, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=errors,
        )  # fmt: skip


def errors_of(run):
    return Path(f"{run.local}.err").read_text()[-2000:]


def committed(run):
    return len(shards.commits(run, "trials/results"))


def wait_for(condition, seconds=400):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kills_of_driver_and_of_a_trial_leave_the_same_table(tmp_path, ray_temp):
    recipe = small_recipe(num_seeds=4)
    undisturbed, disturbed = (make_run(tmp_path / name, recipe) for name in ("undisturbed", "disturbed"))
    calm = driver(undisturbed.local)
    assert calm.wait(timeout=600) == 0, errors_of(undisturbed)
    assert committed(undisturbed) == 12

    # kill -9 of the driver and all that it started, in the middle, twice.
    for least in (2, 6):
        process = driver(disturbed.local)
        wait_for(lambda least=least: committed(disturbed) >= least)
        # Ray's own processes go with it, as those of a machine that loses its power do.
        family = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        assert committed(disturbed) < 12
    before = committed(disturbed)

    # Then one worker that trains: Tune starts its trial again.
    process = driver(disturbed.local)
    wait_for(lambda: _trials(process.pid))
    os.kill(_trials(process.pid)[0], signal.SIGKILL)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0
    assert "'failed': []" in said
    assert f"'run': {12 - before}" in said
    assert table(Run(str(disturbed.local))) == table(undisturbed)


def _trials(pid):
    """Workers below process `pid` that train right now, by the title that Ray gives them."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "ImplicitFunc.train" in " ".join(child.cmdline()):
                found.append(child.pid)
    return found
