"""One fit of a small run in a process of its own, on two ranks, that is hurt at given steps.

    python finetune_driver.py OUT BASE FAULT STEP[,STEP...]

FAULT: none; rank (SIGKILL of a rank); driver (SIGKILL of this process); node (the node of a rank goes); shrink (the
same, with nothing in its place: one rank goes on); full (the disk of the snapshots fills up); nan (a weight decay under
which weights grow a hundredfold a step). Prints `hurt STEP` after each, then `done RANKS`, or `refused SENTENCE` and
exits 1.
"""

import contextlib
import dataclasses
import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import ray
from small_run import changed, small_recipe

from raydr.cluster import finetune, session, snapshots
from raydr.errors import UserError
from raydr.shapes import Shape
from raydr.storage import Run


def recipe_of(base, **options):
    """Plain and ECC generator of grade 1: 12 steps, the branch at 4, a snapshot every other step."""
    settings = {
        "base": base, "grades": (1,), "steps": 12, "ecc_start": 4, "ecc_every": 3, "checkpoint_every": 2,
        "batch_pairs": 2, "accumulation": 2, "ecc_calls": 2, "ecc_batch": 4, "ecc_keep": 3, "ecc_steps": 2,
        "ecc_threshold": 0.15, "w_ecc": 0.5, "validate_every": 6, "learning_rate": 1e-3,
    }  # fmt: skip
    return changed(small_recipe(), finetune=settings | options)


def meter():
    return session.read(f"meter-finetune-{os.getpid()}")


def wait_for(condition, seconds=400.0):
    end = time.time() + seconds
    while time.time() < end:
        try:
            values = meter()
        except ValueError:  # no such actor yet, or no more
            values = {}
        if condition(values):
            return values
        time.sleep(0.02)
    raise TimeoutError("the fit did not come so far")


def step_of(values):
    return sum(value for key, value in values.items() if key.startswith("done:"))


def pids(values):
    return {key: int(value.split(":")[1]) for key, value in values.items() if key.startswith("rank:")}


def node_of(cluster, pid):
    """The node below whose raylet the process runs; never the head."""
    parents = {process.pid for process in psutil.Process(pid).parents()}
    for node in cluster.list_all_nodes():
        if node is not cluster.head_node and node.all_processes["raylet"][0].process.pid in parents:
            return node
    return None


def fill(path):
    """Write to `path` until its disk is full."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def hurt(fault, steps, cluster, out):
    """Runs in the main thread: `remove_node` wants it."""
    for step in steps:
        values = wait_for(lambda values, step=step: step_of(values) >= step)
        before = pids(values)
        if fault == "driver":
            print(f"hurt {step}", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "full":
            fill(Path(out) / snapshots.ROOT / "filler")
            print(f"hurt {step}", flush=True)
            return
        if fault == "rank":
            os.kill(before[f"rank:{step % len(before)}"], signal.SIGKILL)
        else:
            node = next(node for node in (node_of(cluster, pid) for pid in before.values()) if node is not None)
            cluster.remove_node(node, allow_graceful=False)
        print(f"hurt {step}", flush=True)
        wait_for(lambda values, before=before: pids(values) and pids(values).items() != before.items())


def main(out, base, fault, steps):
    from ray.cluster_utils import Cluster

    cluster, shape = None, Shape(num_cpus=4, dashboard=False, train_workers=2, max_failures=8, generators=1)
    steps = [int(step) for step in steps.split(",")] if steps else []
    if fault in ("node", "shrink"):
        # The head holds one rank, so the other is on a node that can go; `node` has a spare one in its place.
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100_000_000})
        for _ in range(len(steps) + 1 if fault == "node" else 1):
            cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
        ray.init(address=cluster.address, namespace=session.NAMESPACE)
    if fault == "shrink":
        shape = dataclasses.replace(shape, train_workers=1, max_train_workers=2)
    answers, ranks = [], [0]
    recipe = recipe_of(base, **({"weight_decay": 1e5} if fault == "nan" else {}))

    def work():
        try:
            answers.append(finetune.run(recipe, Run(out), shape))
        except UserError as error:
            print(f"refused {error}", flush=True)

    def look():  # how many ranks the last group had
        while thread.is_alive():
            with contextlib.suppress(ValueError, ray.exceptions.RayError):
                ranks[0] = meter().get("ranks", ranks[0])
            time.sleep(0.2)

    with session.session(shape):  # before any thread asks for an actor: that alone would start another Ray
        thread = threading.Thread(target=work)
        thread.start()
        looker = threading.Thread(target=look, daemon=True)
        looker.start()
        hurt(fault, steps, cluster, out)
        thread.join()
        looker.join()
    if not answers:
        sys.exit(1)
    print(f"done {ranks[0]} {' '.join(answers[0]['notes'])}", flush=True)
    if cluster:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:5])
