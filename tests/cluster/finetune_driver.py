"""One fit of a small run in a process of its own, on two ranks, that is hurt at given steps.

    python finetune_driver.py OUT BASE FAULT STEP[,STEP...] [together|apart]

FAULT: none; rank (SIGKILL of a rank); driver (SIGKILL of this process, which ranks outlive by some steps); all (of
both); node (the node of a rank goes, another comes); shrink (a node goes, with nothing in its place: one rank goes
on); drain (a node is told that it will be taken, as a spot node is, and goes once its ranks have saved themselves);
full (the disk fills up); nan (a weight decay under which weights grow a hundredfold a step).

With `together` and `apart` generators of two grades are trained by one rank each, in one fit or two at once.

Steps are counted over the whole fit, plain and then ECC from its branch. Prints `hurt STEP` after each, `saved STEP`
for what a drained rank saved, then `done RANKS`, or `refused SENTENCE` and exits 1.
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

from raydr.cluster import finetune, session, snapshots, spot
from raydr.errors import UserError
from raydr.shapes import Shape
from raydr.storage import Run

PLAIN_STEPS = 12
NODE = {"num_cpus": 1, "object_store_memory": 100_000_000}
# The watcher of Ray Train looks every half second here; the notice is longer than all that is left of the fit.
NOTICE_SECONDS = 120.0


def recipe_of(base, **options):
    """Plain and ECC generator of grade 1: 12 steps, the branch at 4, a snapshot every other step.

    The passes of a step make it long enough (a quarter of a second) to be hit.
    """
    settings = {
        "base": base, "grades": (1,), "steps": PLAIN_STEPS, "ecc_start": 4, "ecc_every": 3, "checkpoint_every": 2,
        "batch_pairs": 2, "accumulation": 8, "ecc_calls": 2, "ecc_batch": 4, "ecc_keep": 3, "ecc_steps": 2,
        "ecc_threshold": 0.15, "w_ecc": 0.5, "validate_every": 6, "learning_rate": 1e-3,
    }  # fmt: skip
    return changed(small_recipe(), finetune=settings | options)


def meter():
    return session.read(f"meter-finetune-{os.getpid()}")


def wait_for(condition, fit, seconds=400.0):
    """The meter's values, or another answer that is true, once `condition(values)` is; None where the fit ended."""
    end = time.time() + seconds
    while time.time() < end:
        try:
            values = meter()
        except (ValueError, ray.exceptions.RayError):  # no such actor yet, or no more
            values = {}
        found = condition(values)
        if found:
            return values
        if not fit.is_alive():
            return None
        time.sleep(0.02)
    raise TimeoutError(f"the fit did not come so far: {values}")


def step_of(values):
    done = {key: value for key, value in values.items() if key.startswith("done:")}
    # A driver that starts again says nothing of a plain generator that is stored.
    before = PLAIN_STEPS if done and all("ecc-" in key for key in done) else 0
    return before + sum(done.values())


def num_ranks(values):
    """Of the newest group, all fits together."""
    return sum(value for key, value in values.items() if key.startswith("ranks:"))


def pids(values):
    """{rank: pid} of the newest group of a single fit; ranks of a larger one before it stay on the meter."""
    said = {int(key.rpartition(":")[2]): value for key, value in values.items() if key.startswith("rank:")}
    return {rank: int(value.split(":")[1]) for rank, value in said.items() if rank < num_ranks(values)}


def renewed(values, before):
    """Whether every rank is another process than those `before`."""
    now = pids(values)
    return len(now) == num_ranks(values) and not set(now.values()) & set(before.values())


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


def hurt(fault, steps, cluster, out, fit):
    """Runs in the main thread: `remove_node` wants it."""
    told = None  # what a group says before it dies stays on the meter, its step too
    for step in steps:
        values = wait_for(lambda values, s=step, t=told: step_of(values) >= s and values.get("text") != t, fit)
        if values is None:
            print(f"ended before {step}", flush=True)
            return
        before, told = pids(values), values["text"]
        if fault in ("driver", "all"):
            for pid in before.values() if fault == "all" else ():
                os.kill(pid, signal.SIGKILL)
            print(f"hurt {step}", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "full":
            fill(Path(out) / "filler")
            print(f"hurt {step}", flush=True)
            return
        if fault == "rank":
            os.kill(before[step % len(before)], signal.SIGKILL)
        else:
            (node,) = [node for node in (node_of(cluster, pid) for pid in before.values()) if node is not None]
            if fault == "drain":
                cluster.add_node(**NODE)
                assert spot.drain(spot.Notice(NOTICE_SECONDS, "a test"), cluster.address, node.node_id)
                assert wait_for(lambda values: snapshots.listed(Run(out)), fit), "nothing was saved before the end"
                print(f"saved {snapshots.listed(Run(out))[0].step}", flush=True)
            cluster.remove_node(node, allow_graceful=False)
            if fault == "node":
                cluster.add_node(**NODE)
        print(f"hurt {step}", flush=True)
        wait_for(lambda values, before=before: renewed(values, before), fit)


# A rank has one thread in both, whatever the machine.
FITS = {"together": {"num_cpus": 1}, "apart": {"num_cpus": 2, "train_side_by_side": 2}}


def main(out, base, fault, steps, fits=""):
    from ray.cluster_utils import Cluster

    # Two CPUs everywhere: a rank's threads follow from them, and the last bits of weights from its threads.
    cluster, shape = None, Shape(num_cpus=2, dashboard=False, train_workers=2, max_failures=8, generators=1)
    steps = [int(step) for step in steps.split(",")] if steps else []
    if fault in ("node", "shrink", "drain"):
        # The head holds one rank, so the other is on a node that can go.
        cluster = Cluster(initialize_head=True, head_node_args=NODE)
        cluster.add_node(**NODE)
        ray.init(address=cluster.address, namespace=session.NAMESPACE)
    if fault == "shrink":
        shape = dataclasses.replace(shape, train_workers=1, max_train_workers=2)
    if fault == "drain":
        shape = dataclasses.replace(shape, max_failures=0)
    if fits:
        shape = dataclasses.replace(shape, train_workers=1, **FITS[fits])
    answers, ranks = [], [0]
    # Without regular snapshots, what a drained rank leaves was saved because of the notice.
    options = {"nan": {"weight_decay": 1e5}, "drain": {"checkpoint_every": 0}}
    recipe = recipe_of(base, **options.get(fault, {}), **({"grades": (1, 3)} if fits else {}))

    def work():
        try:
            answers.append(finetune.run(recipe, Run(out), shape))
        except UserError as error:
            print(f"refused {error}", flush=True)

    def look():  # how many ranks the last group had
        while thread.is_alive():
            with contextlib.suppress(ValueError, ray.exceptions.RayError):
                ranks[0] = num_ranks(meter()) or ranks[0]
            time.sleep(0.2)

    with session.session(shape):  # before any thread asks for an actor: that alone would start another Ray
        thread = threading.Thread(target=work)
        thread.start()
        looker = threading.Thread(target=look, daemon=True)
        looker.start()
        hurt(fault, steps, cluster, out, thread)
        thread.join()
        looker.join()
    if not answers:
        sys.exit(1)
    print(f"done {ranks[0]} {' '.join(answers[0]['notes'])}", flush=True)
    if cluster:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
