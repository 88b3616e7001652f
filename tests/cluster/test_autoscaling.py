"""Autoscaling for real: Ray's own autoscaler (v2) with its fake provider, whose nodes are raylets of this machine.

Ray's helper for this runs `ray stop --force`, which ends every Ray of the machine. Here the head is a process of
ours, and only its descendants are ended.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
import requests
from nodes import installed
from ray._private import services
from ray.autoscaler._private.fake_multi_node.node_provider import (
    FAKE_HEAD_NODE_ID,
    FAKE_HEAD_NODE_TYPE,
    FakeMultiNodeProvider,
)

from raydr import schema, shards
from raydr.cluster.regenerate import TOLERANCE
from raydr.images import decode
from raydr.storage import Run

# Two minutes of it, more on a busy machine, are the fixture's run.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def free():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def configuration(gcs):
    """A head of 2 CPUs; generators of 1 CPU and a GPU that only the scheduler believes in: from 0 to 2 of them."""
    pools = {
        FAKE_HEAD_NODE_TYPE: {"resources": {"CPU": 2}, "node_config": {}, "max_workers": 0},
        "generate": {
            "resources": {"CPU": 1, "GPU": 1, "object_store_memory": 100_000_000},
            "node_config": {}, "min_workers": 0, "max_workers": 2,
        },
        # Too dear for what is asked here: must never start.
        "train": {
            "resources": {"CPU": 4, "GPU": 4, "object_store_memory": 100_000_000},
            "node_config": {}, "min_workers": 0, "max_workers": 1,
        },
    }  # fmt: skip
    return {
        "cluster_name": "fake", "max_workers": 3, "idle_timeout_minutes": 0.5, "upscaling_speed": 4.0,
        # Under its own name ("fake_multinode") Ray asks for a file of defaults that its wheel does not hold.
        "provider": {
            "type": "external", "module": f"{FakeMultiNodeProvider.__module__}.{FakeMultiNodeProvider.__name__}",
            "gcs_address": gcs, "launch_multiple": True, "head_node_id": FAKE_HEAD_NODE_ID,
            "disable_node_updaters": True, "disable_launch_config_check": True,
        },
        "auth": {}, "available_node_types": pools, "head_node_type": FAKE_HEAD_NODE_TYPE,
        "file_mounts": {}, "cluster_synced_files": [], "file_mounts_sync_continuously": False, "rsync_exclude": [],
        "rsync_filter": [], "initialization_commands": [], "setup_commands": [], "head_setup_commands": [],
        "worker_setup_commands": [], "head_start_ray_commands": [], "worker_start_ray_commands": [],
    }  # fmt: skip


@contextlib.contextmanager
def autoscaling():
    """(Jobs API, client's environment, log folder) of a head with the autoscaler, in a session of its own."""
    folder = Path(tempfile.mkdtemp(prefix="ra", dir="/tmp"))
    port, web = free(), free()
    gcs = f"{services.get_node_ip_address()}:{port}"
    (folder / "token").write_text("0123456789abcdef" * 4)
    (folder / "cluster.yaml").write_text(json.dumps(configuration(gcs)))
    client = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "RAYDR_"))}
    client |= {"RAY_AUTH_TOKEN_PATH": str(folder / "token"), "PYTHONPATH": installed(folder)}
    client |= {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    head = {
        "RAY_AUTH_MODE": "token", "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "1", "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID, "RAY_NODE_TYPE_NAME": FAKE_HEAD_NODE_TYPE,
        "RAYDR_CLUSTER_YAML": str(folder / "cluster.yaml"), "RAYDR_LOGICAL_GPUS": "1",
    }  # fmt: skip
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}", "--num-cpus=2",
        "--object-store-memory=100000000", f"--dashboard-port={web}", f"--dashboard-agent-listen-port={free()}",
        f"--temp-dir={folder / 'r'}", f"--autoscaling-config={folder / 'cluster.yaml'}", "--disable-usage-stats",
    ]  # fmt: skip
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(command, env=client | head, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(lambda: alive(f"http://127.0.0.1:{web}"), 120, lambda: (folder / "log").read_text())
        yield f"http://127.0.0.1:{web}", client, folder / "r"
    finally:
        ours = []
        with contextlib.suppress(psutil.NoSuchProcess):  # a head that ended early: what it said is the error to see
            ours = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for each in reversed(ours):
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(ours, 30)
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def all_nodes(url):
    """[(state, GPUs)] of every node that there ever was. A dead one has forgotten its GPUs: None."""
    headers = {"Authorization": "Bearer " + "0123456789abcdef" * 4}
    answer = requests.get(f"{url}/api/v0/nodes?detail=1", headers=headers, timeout=10)
    answer.raise_for_status()
    rows = answer.json()["data"]["result"]["result"]
    dead = [("DEAD", None) for row in rows if row["state"] == "DEAD"]
    # By GPUs, not by label: the provider starts its raylets with the head's environment, and so its label.
    return dead + [("ALIVE", row["resources_total"].get("GPU", 0)) for row in rows if row["state"] == "ALIVE"]


def alive(url):
    """{GPUs: living nodes with so many}; the head has none. Empty while nobody answers."""
    try:
        return Counter(gpus for state, gpus in all_nodes(url) if state == "ALIVE")
    except (requests.RequestException, KeyError, TypeError, ValueError):
        return Counter()


def wait_for(condition, seconds, otherwise):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, otherwise()
        time.sleep(0.25)


def test_synthesis_scales_from_nothing_and_back(finished_run, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished_run, out, ignore=shutil.ignore_patterns("synthetic", "trials", "_attempts", "_ray"))
    (out / "logs" / "stage-synthesize.json").unlink()
    with autoscaling() as (url, client, folder):
        assert alive(url) == {0: 1}
        command = [
            sys.executable, "-m", "raydr", "submit", "synthesize", "--address", url, "--out", str(out),
            "--shape.generators", "2", "--shape.generator-cpus", "0.5",
        ]  # fmt: skip
        # From elsewhere: `python -m` puts its folder before PYTHONPATH.
        options = {"env": client, "cwd": tmp_path, "text": True}
        job = subprocess.Popen(command, **options, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        seen = Counter()  # most nodes at a time, by GPUs
        while job.poll() is None:
            seen |= alive(url)
            time.sleep(0.5)
        said = job.stdout.read()
        logs = "".join(path.read_text() for path in folder.glob("session_latest/logs/monitor*"))
        assert job.returncode == 0, said + logs[-5000:]
        assert "the autoscaler must bring 2 x generate (1 CPU, 1 GPU)" in " ".join(said.split())
        assert seen == {0: 1, 1: 2}, "one head, two generate nodes, and never a train node"
        # Idle for 30 s, both go; but what Ray Data asked of the autoscaler holds them for up to 180 s after its end.
        wait_for(lambda: alive(url) == {0: 1}, 240, lambda: str(all_nodes(url)))
        ever = Counter(all_nodes(url))
        assert ever == {("ALIVE", 0): 1, ("DEAD", None): 2}, "a node was launched more than once"
        # What can never be brought is refused at once, and brings nothing.
        refused = subprocess.run(
            [*command[:-4], "--shape.generators", "1", "--shape.generator-gpus", "8", "--count", "16"],
            **options, capture_output=True, timeout=120,
        )  # fmt: skip
        assert refused.returncode == 2, refused.stdout
        assert "synthesize cannot start: 1 of its 1 generators" in " ".join(refused.stdout.split())
        assert Counter(all_nodes(url)) == ever
    columns = ["sample_id", "seed", "image", "score"]
    ours, theirs = (
        shards.read(Run(str(place)), "synthetic", schema.SYNTHETIC, columns).to_pylist()
        for place in (out, finished_run)
    )
    assert [(row["sample_id"], row["seed"]) for row in ours] == [(row["sample_id"], row["seed"]) for row in theirs]
    # Generators for which a GPU is asked take four threads where the fixture's take one: equal within the tolerance
    # that README states, not bit by bit.
    for mine, other in zip(ours, theirs, strict=True):
        difference = np.abs(decode(mine["image"]).astype(int) - decode(other["image"]))
        assert difference.max() <= TOLERANCE, mine["sample_id"]
        assert abs(mine["score"] - other["score"]) < 0.02, mine["sample_id"]
