"""The sweep where people watch experiments: Ray metrics, TensorBoard's hparams view, MLflow. Tune callbacks.

Only validation numbers are shown: whoever picks a band or a ratio by these views must not look at test photographs.
"""

import collections
import importlib.util
import math
import os
import tempfile
from pathlib import Path
from typing import Any

from ray.tune import Callback

from raydr.cluster import telemetry
from raydr.errors import UserError
from raydr.storage import Run

# Columns of the search space, which are what TensorBoard, MLflow and Ray's dashboard show of a trial.
HPARAMS = ("arm", "purpose", "band_low", "band_high", "ratio", "seed")
SCALARS = (bool, int, float, str)
MLFLOW = "MLFLOW_TRACKING_URI"


class Metrics(Callback):
    """Trial states, durations and validation accuracy as Ray metrics."""

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        counts = collections.Counter(trial.status for trial in trials)
        for state in telemetry.TRIAL_STATES:
            telemetry.record("raydr_trials", counts[state], state=state)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        self.on_step_end(-1, trials)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        arm, result = trial.config["arm"], trial.last_result or {}
        telemetry.record("raydr_trials_ended", 1, arm=arm, outcome="finished")
        if "seconds" in result:
            telemetry.record("raydr_trial_seconds", result["seconds"], arm=arm)
            telemetry.record("raydr_trial_accuracy", result["validation_balanced_accuracy"], arm=arm)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        telemetry.record("raydr_trials_ended", 1, arm=trial.config["arm"], outcome="failed")


class HParams(Callback):
    """One event file a trial below `logs/tensorboard/sweep`: TensorBoard's hparams view of the sweep."""

    def __init__(self, url: str) -> None:
        self._run = Run(url)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        result = trial.last_result or {}
        named = {name: float(value) for name, value in result.items() if name.startswith("validation_")}
        metrics = {name: value for name, value in named.items() if math.isfinite(value)}
        if metrics:
            # A searcher draws the id last, inside the trial, and columns of its own.
            trial_id = trial.config.get("trial_id") or result["job"]
            config = {k: v for k, v in trial.config.items() if isinstance(v, SCALARS) and k != "trial_id"}
            key = f"logs/tensorboard/sweep/{trial_id}/events.out.tfevents.raydr"
            self._run.replace(key, event_file(config, metrics))


def event_file(config: dict[str, Any], metrics: dict[str, float]) -> bytes:
    """TensorBoard's event file of one session of hyperparameters: whole, as a bucket cannot append."""
    from tensorboardX import SummaryWriter
    from tensorboardX.summary import hparams

    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder, flush_secs=1) as writer:
            for summary in hparams(config, metrics):
                writer.file_writer.add_summary(summary)
            for name, value in metrics.items():
                writer.add_scalar(name, value, 0)
        (file,) = Path(folder).iterdir()
        return file.read_bytes()


def mlflow(experiment: str, run: str) -> list[Callback]:
    """Ray's own MLflow callback where MLFLOW_TRACKING_URI is set, else none; UserError where MLflow is missing."""
    address = os.environ.get(MLFLOW)
    if not address:
        return []
    if importlib.util.find_spec("mlflow") is None:
        raise UserError(f"{MLFLOW} is set and MLflow is not installed: pip install 'raydr[track]', or unset it")
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    return [MLflowLoggerCallback(tracking_uri=address, experiment_name=experiment, tags={"raydr.run": run})]


def callbacks(url: str, experiment: str) -> list[Callback]:
    """What a sweep of the run at `url` reports to."""
    return [Metrics(), HParams(url), *mlflow(experiment, url)]
