"""The sweep in TensorBoard's hparams view, in MLflow and as metrics."""

import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from raydr import schema, shards
from raydr.cluster import telemetry, tracking
from raydr.errors import UserError
from raydr.storage import Run

COLUMNS = {"arm": "band", "purpose": "arm", "band_low": 0.7, "band_high": 0.9, "ratio": 1.0, "seed": 2}


def session(folder):
    """(hyperparameters, metrics) that TensorBoard reads of one event file's folder."""
    events = EventAccumulator(str(folder))
    events.Reload()
    summary = events.SummaryMetadata("_hparams_/session_start_info")
    start = plugin_data_pb2.HParamsPluginData.FromString(summary.plugin_data.content).session_start_info
    values = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
    return values, {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"]}


def trial(config, result, status="TERMINATED"):
    return SimpleNamespace(config=config, last_result=result, status=status)


def test_event_file_is_a_session_of_the_hparams_view(tmp_path):
    (tmp_path / "events.out.tfevents.raydr").write_bytes(tracking.event_file(COLUMNS, {"validation_recall_3": 0.25}))
    values, metrics = session(tmp_path)
    assert values == COLUMNS
    assert metrics == {"validation_recall_3": 0.25}


def test_hparams_show_validation_alone_and_no_number_that_is_none(tmp_path):
    result = {"validation_macro_f1": 0.5, "validation_macro_auc": float("nan"), "balanced_accuracy": 0.9, "job": "x"}
    # Of a searcher: the id stands in the result, and the space holds more than scalars.
    config = COLUMNS | {"learning_rate": 0.01, "layers": [1, 2]}
    tracking.HParams(str(tmp_path)).on_trial_complete(0, [], trial(config, result))
    values, metrics = session(tmp_path / "logs" / "tensorboard" / "sweep" / "x")
    assert values == COLUMNS | {"learning_rate": 0.01}
    assert metrics == {"validation_macro_f1": 0.5}
    tracking.HParams(str(tmp_path)).on_trial_complete(0, [], trial(COLUMNS | {"trial_id": "y"}, None))
    assert not (tmp_path / "logs" / "tensorboard" / "sweep" / "y").exists()


def test_states_and_results_become_metrics(monkeypatch):
    found = []
    monkeypatch.setattr(telemetry, "record", lambda name, value, **tags: found.append((name, value, tags)))
    metrics = tracking.Metrics()
    done = trial(COLUMNS, {"validation_balanced_accuracy": 0.6, "seconds": 12.0})
    metrics.on_step_end(0, [done, done, trial(COLUMNS, {}, "RUNNING")])
    counts = {tags["state"]: value for _, value, tags in found}
    assert counts == {"PENDING": 0, "RUNNING": 1, "PAUSED": 0, "TERMINATED": 2, "ERROR": 0}
    found.clear()
    metrics.on_trial_complete(0, [], done)
    metrics.on_trial_error(0, [], trial(COLUMNS, None, "ERROR"))
    assert found == [
        ("raydr_trials_ended", 1, {"arm": "band", "outcome": "finished"}),
        ("raydr_trial_seconds", 12.0, {"arm": "band"}),
        ("raydr_trial_accuracy", 0.6, {"arm": "band"}),
        ("raydr_trials_ended", 1, {"arm": "band", "outcome": "failed"}),
    ]


def test_mlflow_is_asked_for_by_its_own_variable(monkeypatch):
    monkeypatch.delenv(tracking.MLFLOW, raising=False)
    assert tracking.mlflow("debug", "out") == []
    monkeypatch.setenv(tracking.MLFLOW, "http://127.0.0.1:5000")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"raydr\[track\]"):
        tracking.mlflow("debug", "out")


def test_every_trial_of_a_run_has_its_session(finished_run):
    rows = shards.read(Run(str(finished_run)), "trials/results", schema.TRIALS).to_pylist()
    folder = finished_run / "logs" / "tensorboard" / "sweep"
    assert {path.name for path in folder.iterdir()} == {row["trial_id"] for row in rows}
    for row in rows:
        values, metrics = session(folder / row["trial_id"])
        assert {name: values[name] for name in ("arm", "purpose", "seed")} == {
            "arm": row["arm"],
            "purpose": row["purpose"],
            "seed": row["seed"],
        }
        stored = row["validation_balanced_accuracy"]
        assert metrics["validation_balanced_accuracy"] == pytest.approx(stored, abs=1e-6)
        assert all(name.startswith("validation_") for name in metrics)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_mlflow_holds_what_a_sweep_adds(finished_run, tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="needs the extra `track`")
    out, address = tmp_path / "out", f"file://{tmp_path}/mlruns"
    shutil.copytree(finished_run, out)
    own = {"MLFLOW_ALLOW_FILE_STORE": "true", tracking.MLFLOW: address}
    command = [sys.executable, "-m", "raydr", "sweep", "--out", str(out), "--num-seeds", "3"]
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    try:
        client = mlflow.tracking.MlflowClient(address)
        experiment = client.get_experiment_by_name("debug")
        runs = client.search_runs([experiment.experiment_id])
    finally:
        del os.environ["MLFLOW_ALLOW_FILE_STORE"]
    rows = {row["trial_id"]: row for row in shards.read(Run(str(out)), "trials/results", schema.TRIALS).to_pylist()}
    assert len(runs) == 6  # the third seed of six arms: the others were there
    for run in runs:
        row = rows[run.data.params["trial_id"]]
        assert run.info.status == "FINISHED"
        assert (run.data.params["arm"], run.data.params["seed"]) == (row["arm"], "2")
        stored = row["validation_balanced_accuracy"]
        assert run.data.metrics["validation_balanced_accuracy"] == pytest.approx(stored, abs=1e-6)
        assert "balanced_accuracy" not in run.data.metrics
