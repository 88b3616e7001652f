"""The only place that starts Ray or attaches to it."""

import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raydr import terminal
from raydr.cluster import placement
from raydr.errors import UserError
from raydr.identity import fingerprint
from raydr.shapes import Shape
from raydr.storage import Run

NAMESPACE = "raydr"
# Names of threads that call Ray while a stage runs: Ray Data's, which its own end awaits for 2 s only, and ours.
CALLERS = ("StreamingExecutor-", "iter_threaded", "ray-data-metadata-prefetch", "raydr-bar", "raydr-overseer")
CALLERS_END_SECONDS = 30.0
# What Ray says, in a plain Exception, when its own processes take longer than 30 s.
TOO_SLOW = "timed out during startup"
# What Ray's C++ writes to stderr as soon as it reads RAY_BACKEND_LOG_LEVEL, whatever the level.
GREETING = b"Set ray log level from environment variable"


@contextmanager
def session(shape: Shape) -> Iterator[None]:
    """Attach to the Ray session that exists (a job's, or `shape.address`), else start one here.

    Only a session that this call started is shut down at its end.
    """
    if ray.is_initialized():
        with _data_settings(), placement.under(shape):
            yield
        return
    # Each is what a person would otherwise scroll past: deprecations, per-operator bars, usage notes.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    address = shape.address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {
        "namespace": NAMESPACE,
        "logging_level": logging.ERROR,
        "log_to_driver": os.environ.get("RAYDR_WORKER_LOGS") == "1",
    }
    if address and address != "local":
        try:
            with _without_greeting():
                ray.init(address=address, **options)
        except (ConnectionError, RuntimeError) as error:
            raise UserError(
                f"No Ray cluster answers at {address} ({error}): start it, or leave the address out"
            ) from None
    else:
        # Two CPUs at least, or a one-core laptop could never hold a generator and its sink at once.
        num_cpus = shape.num_cpus or max(2, os.cpu_count() or 2)
        temp = os.environ.get("RAYDR_RAY_TEMP")
        try:
            with _on_loopback(), _without_greeting():
                ray.init(
                    address="local", num_cpus=num_cpus, include_dashboard=shape.dashboard, _temp_dir=temp, **options
                )  # fmt: skip
        except Exception as error:
            if TOO_SLOW not in str(error):
                raise
            raise UserError(
                "Ray did not start on this machine within its 30 s: the machine is too busy; try again when it is not"
            ) from None
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # An error that ends a stage is raised here; Ray Data's console would print it before, with its traceback.
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)
    try:
        with _data_settings(), placement.under(shape):
            yield
    finally:
        await_callers()
        ray.shutdown()


@contextmanager
def _data_settings() -> Iterator[None]:
    """Ray Data as every stage needs it; what the process had set before comes back at the end."""
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.verbose_progress = False
    # One block is one shard: it must never be split by size.
    context.target_max_block_size = None
    # A healthy run may wait hours for spot machines, and Ray would end it after half of one. What can never start
    # is refused before (preflight), and the commit rate is on the progress line.
    context.execution_no_progress_timeout_s = -1
    with ray.data.DataContext.current(context):
        yield


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Ray that is started inside listens on 127.0.0.1 alone, as it does by itself on macOS.

    Else a laptop's ports are open to its network, and those of metrics answer without a token.
    """
    name, before = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, ray_constants.ENABLE_RAY_CLUSTER
    said = os.environ.get(name)
    # This process has read the variable long ago, Ray's services will.
    os.environ[name], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        os.environ.pop(name)
        if said is not None:
            os.environ[name] = said


@contextmanager
def _without_greeting() -> Iterator[None]:
    """What is written to stderr inside, by C++ too, comes out at the end of the block but for Ray's line GREETING.

    It would be the second line of every run.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            with open(2, "wb", closefd=False) as stderr:
                stderr.writelines(line for line in file if GREETING not in line)


def await_callers(seconds: float = CALLERS_END_SECONDS) -> list[str]:
    """Wait for the threads that may be inside a call of Ray's; names of those that are still there.

    A call after `ray.shutdown` ends the whole process with exit code 1 and without a word (Ray's GetCoreWorker calls
    _Exit): on a busy machine a complete run then looks like a failed one.
    """
    end = time.monotonic() + seconds
    callers = [thread for thread in threading.enumerate() if thread.name.startswith(CALLERS)]
    for thread in callers:
        if thread is not threading.current_thread():
            thread.join(max(0.0, end - time.monotonic()))
    return [thread.name for thread in callers if thread.is_alive()]


def cpus() -> int:
    """CPUs of the session, all nodes together."""
    return int(ray.cluster_resources().get("CPU", 1))


def node_cache(run: Run) -> Path:
    """Where this node keeps what it has decoded or downloaded of a run."""
    if run.local is not None:
        return run.local / "cache"
    return Path(tempfile.gettempdir()) / "raydr-cache" / fingerprint(run.url)


def here() -> dict[str, Any]:
    """Options of an actor that shall live on the driver's node: a worker node may be taken away at any time."""
    node = ray.get_runtime_context().get_node_id()
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}


@ray.remote(num_cpus=0)
class Meter:
    """Numbers that workers report and the driver's progress bar reads."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}

    def set(self, **values: Any) -> None:
        self._values.update(values)

    def read(self) -> dict[str, Any]:
        return self._values


@contextmanager
def metered(stage: str, total: float, unit: str) -> Iterator[str]:
    """A progress bar fed by a Meter; yields the name under which workers find it.

    Workers set `done` and `text`, or one `done:{part}` per part, which the bar adds up.
    """
    name = f"meter-{stage}-{os.getpid()}"
    meter = Meter.options(name=name, namespace=NAMESPACE, **here()).remote()  # type: ignore[attr-defined]

    def poll(bar: terminal.Bar) -> None:
        try:
            values = ray.get(meter.read.remote(), timeout=5)
        except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError):
            return
        parts = [value for key, value in values.items() if key.startswith("done:")]
        bar.to(values.get("done", sum(parts)), values.get("text", ""))

    try:
        with terminal.bar(stage, total, unit, poll):
            yield name
    finally:
        ray.kill(meter)


def meter_of(name: str) -> Any:
    """The named meter itself: who reports at every step asks the GCS once."""
    return ray.get_actor(name, namespace=NAMESPACE)


def report_to(meter: Any, *, wait: bool = False, **values: Any) -> None:
    """From a worker: set values on the meter (its name, or what `meter_of` found); nobody waits unless told to."""
    answer: Any = (meter_of(meter) if isinstance(meter, str) else meter).set.remote(**values)
    if wait:
        ray.get(answer)


def read(meter: str) -> dict[str, Any]:
    """All values that were set on the named meter."""
    values: Any = ray.get(ray.get_actor(meter, namespace=NAMESPACE).read.remote())
    return values
