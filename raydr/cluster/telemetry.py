"""What a run tells Ray's dashboards, and what a stage cost: seconds, peak memory, resources held.

    telemetry.record("raydr_images", 64, kind="plain", grade=3)

Every metric is declared in METRICS, which the Grafana boards in `raydr/assets/dashboards` draw. Tags are few and take
few values (never an id), so that a run of any length costs Prometheus some hundred series. Recording is free of
calls to other processes: Ray's workers send what they recorded every 10 s (RAY_metrics_report_interval_ms).
"""

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from raydr import prices, spending, terminal
from raydr.errors import UserError

# Bounds in seconds of anything from a photograph's encoding to a trial of a night, three a decade.
SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0, 30_000.0)
SCORES = tuple(round(0.05 * k, 2) for k in range(1, 21))
# Every state that Tune gives a trial; one that no trial is in is reported as 0, so that lines fall back to it.
TRIAL_STATES = ("PENDING", "RUNNING", "PAUSED", "TERMINATED", "ERROR")


@dataclass(frozen=True)
class Metric:
    """A declaration; `kind` is counter, gauge or histogram, `bounds` the buckets of the last."""

    kind: str
    description: str
    tags: tuple[str, ...]
    bounds: tuple[float, ...] = ()


METRICS = {
    "raydr_images": Metric("counter", "Images generated, scored and committed", ("kind", "grade")),
    "raydr_images_accepted": Metric("counter", "Of these, usable and inside the band", ("kind", "grade")),
    "raydr_quota_share": Metric("gauge", "Share of its quota that a generator has met", ("kind", "grade")),
    "raydr_score": Metric("histogram", "Score of generated images", ("kind", "grade"), SCORES),
    "raydr_latency_seconds": Metric("histogram", "Seconds of one piece of work", ("stage", "what"), SECONDS),
    "raydr_stage_seconds": Metric("gauge", "Seconds since the present stage began", ("stage",)),
    "raydr_stage_memory_bytes": Metric("gauge", "Memory of the processes on the driver's machine", ("stage",)),
    "raydr_resource_seconds": Metric("counter", "Seconds x units of CPU and GPU held", ("stage", "resource")),
    "raydr_cost": Metric("counter", "Price of the living nodes of known price", ("stage", "currency")),
    "raydr_loss": Metric("gauge", "Terms of the fine-tuning loss", ("kind", "grade", "term")),
    "raydr_gradient_norm": Metric("gauge", "Norm of the gradient before clipping", ("kind", "grade")),
    "raydr_finetune_progress": Metric("gauge", "Share of a generator's steps that is done", ("kind", "grade")),
    "raydr_ecc_acceptance": Metric("gauge", "Share of ECC candidates accepted at the last refresh", ("kind", "grade")),
    "raydr_ecc_pool_images": Metric("gauge", "Images in the ECC pool", ("kind", "grade")),
    "raydr_ecc_pool_age_steps": Metric("gauge", "Steps since the ECC pool was made", ("kind", "grade")),
    "raydr_trials": Metric("gauge", "Trials of the sweep by state", ("state",)),
    "raydr_trials_ended": Metric("counter", "Trials that ended", ("arm", "outcome")),
    "raydr_trial_seconds": Metric("histogram", "Seconds of a trial", ("arm",), SECONDS),
    "raydr_trial_accuracy": Metric("gauge", "Validation balanced accuracy of an arm's latest trial", ("arm",)),
}
# What was spent is written down this often: so much a killed driver forgets.
KEEP_SECONDS = 15.0
TERMS = ("instance", "prior", "ecc", "loss", "validation")


@functools.cache
def _instrument(name: str) -> Any:
    from ray.util import metrics

    declared = METRICS[name]
    if declared.kind == "histogram":
        return metrics.Histogram(name, declared.description, boundaries=list(declared.bounds), tag_keys=declared.tags)
    return {"counter": metrics.Counter, "gauge": metrics.Gauge}[declared.kind](
        name, declared.description, tag_keys=declared.tags
    )


def record(name: str, value: float, **tags: object) -> None:
    """Count, set or observe `value` (by the metric's kind); the tags are exactly the declared ones."""
    declared = METRICS[name]
    assert set(tags) == set(declared.tags), f"{name} takes the tags {declared.tags}, not {tuple(tags)}"
    instrument, words = _instrument(name), {key: str(value) for key, value in tags.items()}
    if declared.kind == "gauge":
        instrument.set(float(value), words)
    elif declared.kind == "histogram":
        instrument.observe(float(value), words)
    elif value > 0:  # Ray refuses to count nothing
        instrument.inc(float(value), words)


def exported(name: str) -> tuple[str, ...]:
    """The names under which Prometheus finds a metric."""
    endings = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}
    return tuple(f"ray_{name}{ending}" for ending in endings[METRICS[name].kind])


# -- on the nodes ---------------------------------------------------------------------------------


@contextlib.contextmanager
def timed(stage: str, what: str) -> Iterator[None]:
    """Observe the latency of a block that ends well."""
    started = time.perf_counter()
    yield
    record("raydr_latency_seconds", time.perf_counter() - started, stage=stage, what=what)


def shard(kind: str, grade: int, scores: Sequence[float], accepted: int) -> None:
    """A committed shard of synthetic images."""
    record("raydr_images", len(scores), kind=kind, grade=grade)
    record("raydr_images_accepted", accepted, kind=kind, grade=grade)
    for score in scores:
        record("raydr_score", score, kind=kind, grade=grade)


class Finetuning:
    """Takes the trainer's events of one generator (`on_event`), on one rank."""

    def __init__(self, kind: str, grades: Sequence[int]) -> None:
        self._tags = {"kind": kind, "grade": str(grades[0]) if len(grades) == 1 else "all"}
        self._refreshed: int | None = None
        self._last = time.perf_counter()

    def __call__(self, event: Mapping[str, Any]) -> None:
        now = time.perf_counter()
        what = "ecc refresh" if event["event"] == "ecc" else "step"
        record("raydr_latency_seconds", now - self._last, stage="finetune", what=what)
        self._last = now
        if event["event"] == "ecc":
            self._refreshed = event["step"]
            record("raydr_ecc_acceptance", event["ecc_acceptance"], **self._tags)
            record("raydr_ecc_pool_images", event["ecc_pool"], **self._tags)
        elif event["event"] == "step":
            for term in TERMS:
                if event.get(term) is not None:
                    record("raydr_loss", event[term], term=term, **self._tags)
            record("raydr_gradient_norm", event["grad_norm"], **self._tags)
            record("raydr_finetune_progress", event["step"] / event["steps"], **self._tags)
            if self._refreshed is not None:
                record("raydr_ecc_pool_age_steps", event["step"] - self._refreshed, **self._tags)


# -- on the driver --------------------------------------------------------------------------------


def quota(rows: Sequence[Mapping[str, Any]], wanted: Sequence[Any]) -> None:
    """How far each target is: `rows` as the quota actor's state has them, `wanted` its targets."""
    asked = {(target.generator_id, target.grade): target for target in wanted}
    for row in rows:
        target = asked[row["generator_id"], row["grade"]]
        share = row["accepted"] / target.accepted if target.accepted else row["shards"] / target.least
        kind = row["generator_id"].split("-")[0]
        record("raydr_quota_share", min(1.0, share), kind=kind, grade=row["grade"])


class Usage:
    """Filled when the stage ends."""

    seconds: float = 0.0
    peak_bytes: int = 0
    spend: spending.Spend


def memory_bytes(process: psutil.Process) -> int:
    """Proportional set size of `process` and all its descendants (Ray's workers are such), bytes.

    Shared pages count once in all: summing resident sizes would count torch's libraries once a worker.
    """
    total = 0
    for item in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.Error, OSError):
            full = item.memory_full_info()
            total += getattr(full, "pss", 0) or full.rss
    return total


def held(total: Mapping[str, float], free: Mapping[str, float]) -> dict[str, float]:
    """Units of CPU and GPU that tasks, actors and placement groups hold."""
    return {name: total[name] - free.get(name, 0.0) for name in ("CPU", "GPU") if name in total}


@contextlib.contextmanager
def measured(
    stage: str | None = None,
    every_seconds: float = 2.0,
    table: prices.Prices | None = None,
    keep: Callable[[spending.Spend], None] | None = None,
) -> Iterator[Usage]:
    """Measure a block; with a `stage` also for the dashboards. Costs about 1 % of a core with 20 processes.

    `keep` is given what the living nodes have cost by `table`, now and then and at the end.
    """
    usage, clock, stop, process = Usage(), terminal.Clock(), threading.Event(), psutil.Process()
    table = table or prices.load()
    usage.spend = spending.Spend(currency=table.currency, checked=table.checked)

    def watch() -> None:
        last = kept = time.monotonic()
        while True:
            now_bytes = memory_bytes(process)
            usage.peak_bytes = max(usage.peak_bytes, now_bytes)
            now = time.monotonic()
            if stage:
                _report(stage, table, usage.spend, clock.seconds, now_bytes, now - last)
            last = now
            ended = stop.wait(every_seconds)
            if keep is not None and (ended or now - kept > KEEP_SECONDS):
                kept = now
                # Where nothing can be written the stage itself says so, and louder.
                with contextlib.suppress(UserError):
                    keep(usage.spend)
            if ended:
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield usage
    finally:
        stop.set()
        thread.join()
        usage.seconds = clock.seconds


def _report(
    stage: str, table: prices.Prices, whole: spending.Spend, seconds: float, num_bytes: int, passed: float
) -> None:
    """One sample of a running stage, `passed` seconds after the one before."""
    import ray

    if not ray.is_initialized():
        return
    record("raydr_stage_seconds", seconds, stage=stage)
    record("raydr_stage_memory_bytes", num_bytes, stage=stage)
    # A cluster that does not answer for a moment must not end the measuring: its sample is left out.
    with contextlib.suppress(ray.exceptions.RayError, ConnectionError):
        for name, units in held(ray.cluster_resources(), ray.available_resources()).items():
            record("raydr_resource_seconds", units * passed, stage=stage, resource=name)
        spent = spending.Spend(currency=table.currency, checked=table.checked)
        spent.pass_time(passed, spending.nodes_of(ray.nodes(), table))
        spending.add(whole, spent)
        record("raydr_cost", spent.cost, stage=stage, currency=table.currency)
