"""What is wrong with a machine or a cluster, and what will be slow, before hours are spent on it.

    raydr doctor                              this machine (starts Ray here for a moment)
    raydr doctor --address auto --out OUT     the cluster this machine belongs to, and a run's storage
    raydr doctor --address http://127.0.0.1:8265 --out OUT     the same, sent as a job

Every check is one sentence: ok, warn (it works, but) or bad (it will fail).
"""

import contextlib
import secrets
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raydr import terminal
from raydr.backends import TEMPORARY
from raydr.cluster import session
from raydr.cluster.diagnosis import Check, check_auth, judge
from raydr.cluster.probe import Cluster, Probe, Storage
from raydr.errors import UserError
from raydr.record import stored_recipe
from raydr.shapes import Shape
from raydr.storage import Run

SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
# A worker starts in 2-4 s and imports this package; on a busy machine in 20.
NODE_TIMEOUT_SECONDS = 60.0
COLORS = {"ok": "green", "warn": "yellow", "bad": "red"}


def run(address: str | None = None, out: str | None = None) -> list[Check]:
    """Look at the cluster at `address` (default: the job's own, else this machine) and at the storage of `out`.

    Raises UserError where no cluster answers, or for an address of the Jobs API (the command line sends
    those as a job).
    """
    if address and "://" in address and not address.startswith("ray://"):
        raise UserError(f"{address} takes jobs: send it one with `raydr doctor --address {address}`")
    target = Run(out) if out else None
    recipe = stored_recipe(target) if target else None
    base = recipe.finetune.base if recipe else SD15
    with session.session(Shape(address=address, dashboard=False)):
        cluster = look("" if base == "phantom" else base, target)
        auth = check_auth(ray_auth_mode(), ray.get_runtime_context().gcs_address, len(cluster.facts))
    return [*judge(cluster, base, needs_base=recipe is not None), auth]


def look(base: str, out: Run | None) -> Cluster:
    """Ask every living node of the attached cluster; a probe per node, ended before this returns."""
    living = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    probes: dict[str, Any] = {
        node: Probe.options(  # type: ignore[attr-defined]
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote(node, base)
        for node in living
    }
    try:
        found, silent = _gather({node: probe.facts.remote() for node, probe in probes.items()})
        known = []
        for node, fact in found.items():
            skew, error = _skew(probes[node])
            resources = living[node]["Resources"]
            store, gpus = int(resources.get("object_store_memory", 0)), int(resources.get("GPU", 0))
            known.append(replace(fact, skew_seconds=skew, skew_error_seconds=error, object_store=store, ray_gpus=gpus))
        storage = _storage({node: probes[node] for node in found}, out) if out else []
        return Cluster(sorted(known, key=lambda fact: fact.host), storage, silent)
    finally:
        for probe in probes.values():
            ray.kill(probe)


def _gather(calls: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """({node: answer}, {node: why there is none})."""
    ray.wait(list(calls.values()), num_returns=len(calls), timeout=NODE_TIMEOUT_SECONDS)
    answers, failures = {}, {}
    for node, call in calls.items():
        try:
            answers[node] = ray.get(call, timeout=0.1)
        except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError) as error:
            late = isinstance(error, ray.exceptions.GetTimeoutError)
            failures[node] = f"no answer within {NODE_TIMEOUT_SECONDS:.0f} s" if late else _last_line(error)
    return answers, failures


def _last_line(error: Exception) -> str:
    return ([line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__])[-1][:200]


def _skew(probe: Any) -> tuple[float, float]:
    """(node's clock minus ours, half the round trip), from the fastest of three calls."""
    trips = []
    for _ in range(3):
        before = time.time()
        there = ray.get(probe.now.remote(), timeout=30)
        after = time.time()
        trips.append(((after - before) / 2, there - (before + after) / 2))
    error, skew = min(trips)
    return skew, error


def _storage(probes: dict[str, Any], out: Run) -> list[Storage]:
    """Every node writes a key of its own into `out`, then reads all of them; nothing is left behind."""
    nonce, existed = secrets.token_hex(6), out.local is None or out.local.exists()
    written, _ = _gather({node: probe.write.remote(out.url, nonce) for node, probe in probes.items()})
    nodes = list(written)
    read, _ = _gather({node: probes[node].read.remote(out.url, nonce, nodes) for node in nodes})
    for node in nodes:
        with contextlib.suppress(UserError):
            out.delete(f"cache/doctor/{nonce}-{node}")
    if out.local is not None and not existed:  # a mistyped --out leaves no folder; one in use is not empty
        for folder in (out.local / "cache" / "doctor", out.local / "cache", out.local / TEMPORARY, out.local):
            with contextlib.suppress(OSError):
                folder.rmdir()
    done = []
    for node, fact in written.items():
        seen, seconds = read.get(node, ((), 0.0))
        done.append(Storage(node, fact.problem, fact.exclusive, seen, fact.write_seconds, seconds))
    return done


def ray_auth_mode() -> str:
    """ "token" or "disabled", as the attached cluster has it (another mode than the cluster's cannot attach)."""
    from ray._raylet import AuthenticationMode, get_authentication_mode  # type: ignore[attr-defined]

    return "disabled" if get_authentication_mode() == AuthenticationMode.DISABLED else "token"


def show(checks: Iterable[Check]) -> int:
    """Print the checks; returns the exit code: 1 where one is bad."""
    checks = list(checks)
    for check in checks:
        color = COLORS[check.state]
        name, sentence = terminal.escape(check.name), terminal.escape(check.sentence)
        terminal.console.print(f"  [{color}]{check.state:<4}[/{color}] {name:<15} {sentence}")
    return int(any(check.state == "bad" for check in checks))
