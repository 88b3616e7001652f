"""Run on every worker node: when the cloud is about to take the node away, drain it in Ray.

    python -m raydr.cluster.spot            poll the cloud's metadata service until a notice comes
    python -m raydr.cluster.spot --now      drain at once (the preStop hook of a Kubernetes pod)

A drained node gets no new work, and Ray Train checkpoints and restarts elsewhere without counting a failure.
Without it the node just dies: nothing is lost but the time of what was running. AWS tells 120 s before,
Google Cloud 30 s. On a node that is not spot this ends at once.
"""

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import ray
from ray._private import services
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.core.generated import autoscaler_pb2, gcs_pb2

ENDPOINT = "http://169.254.169.254"
# AWS asks for five seconds; of Google's 30 s every second counts.
POLL_SECONDS = {"aws": 5.0, "gcp": 1.0}
AWS_NOTICE_SECONDS, GCP_NOTICE_SECONDS = 120.0, 30.0
ALIVE = gcs_pb2.GcsNodeInfo.ALIVE  # type: ignore[attr-defined]
PREEMPTION = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")  # type: ignore[attr-defined]
# The metadata service answers in a millisecond on a cloud, and never outside one.
TIMEOUT_SECONDS = 2.0
# A proxy for the internet must not be asked for a link-local address.
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


@dataclass(frozen=True)
class Notice:
    """The cloud takes this node away in `seconds`."""

    seconds: float
    text: str


def fetch(url: str, headers: dict[str, str], method: str = "GET") -> str | None:
    """The body, or None where the service says that there is no such thing. Raises OSError when nobody answers."""
    try:
        with _open(urllib.request.Request(url, headers=headers, method=method), timeout=TIMEOUT_SECONDS) as answer:
            return answer.read(65536).decode()
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise


def _aws(endpoint: str, key: str) -> str | None:
    token = fetch(f"{endpoint}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, "PUT")
    return fetch(f"{endpoint}/latest/meta-data/{key}", {"X-aws-ec2-metadata-token": token or ""})


def _gcp(endpoint: str, key: str) -> str | None:
    return fetch(f"{endpoint}/computeMetadata/v1/instance/{key}", {"Metadata-Flavor": "Google"})


def spot_cloud(endpoint: str = ENDPOINT) -> str | None:
    """ "aws" or "gcp" on a spot node; None on any other machine."""
    try:
        if (_gcp(endpoint, "scheduling/preemptible") or "").strip() == "TRUE":
            return "gcp"
        if (_aws(endpoint, "instance-life-cycle") or "").strip() == "spot":
            return "aws"
    except OSError:
        return None
    return None


def notice(cloud: str, endpoint: str = ENDPOINT) -> Notice | None:
    """The notice that this node has been given, or None. Raises OSError when the service does not answer."""
    if cloud == "gcp":
        told = (_gcp(endpoint, "preempted") or "").strip() == "TRUE"
        return Notice(GCP_NOTICE_SECONDS, "Google Cloud preempts this node") if told else None
    text = _aws(endpoint, "spot/instance-action")
    if text is None:
        return None
    action = json.loads(text)
    at = datetime.fromisoformat(action["time"])
    seconds = (at - datetime.now(UTC)).total_seconds()
    return Notice(min(max(seconds, 0.0), AWS_NOTICE_SECONDS), f"AWS will {action['action']} this node at {at:%H:%M:%S}")


def connect(ray_address: str | None) -> Any:
    """Ray's control service (GCS) at `ray_address`, else of the Ray that runs on this machine."""
    return GcsClient(address=services.canonicalize_bootstrap_address_or_die(ray_address))  # type: ignore[arg-type]


def own_nodes(client: Any, address: str) -> list[str]:
    """Hex ids of the living Ray nodes of the machine with IP `address`, the head left out."""
    return [
        node_id.hex()
        for node_id, node in client.get_all_node_info(timeout=5).items()
        if node.state == ALIVE and node.node_manager_address == address and not node.is_head_node
    ]


def drain(told: Notice, ray_address: str | None = None, node_id: str | None = None) -> bool:
    """Drain this machine's Ray nodes (or `node_id`), trying again until the notice runs out; whether Ray took it."""
    deadline = time.time() + told.seconds
    while True:
        try:
            client = connect(ray_address)
            nodes = [node_id] if node_id else own_nodes(client, services.get_node_ip_address())
            answers = [
                client.drain_node(name, PREEMPTION, told.text, int(deadline * 1000), timeout=5) for name in nodes
            ]
            log(f"{told.text}: draining {len(nodes)} Ray node(s), {told.seconds:.0f} s left")
            if nodes and all(accepted for accepted, _ in answers):
                return True
            log(f"not drained: {[reason for accepted, reason in answers if not accepted] or 'no Ray node runs here'}")
        except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
            log(f"Ray does not answer: {error}")
        if time.time() + 2 > deadline:
            return False
        time.sleep(2)


def wait_until_gone(seconds: float, ray_address: str | None = None) -> None:
    """Hold a stopping pod alive until its drained Ray node has ended, or `seconds` have passed."""
    end = time.time() + seconds
    client = connect(ray_address)
    while time.time() < end and own_nodes(client, services.get_node_ip_address()):
        time.sleep(1)


def log(text: str) -> None:
    print(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {text}", flush=True)


def main(argv: Sequence[str]) -> int:
    """0 after a drain or on a node that is not spot, 1 when Ray did not take the drain."""
    parser = argparse.ArgumentParser("python -m raydr.cluster.spot", description=__doc__.splitlines()[0])
    parser.add_argument("--now", action="store_true", help="drain at once and wait for the node to end")
    parser.add_argument("--seconds", type=float, default=100.0, help="time left, with --now (default: 100)")
    parser.add_argument("--address", help="Ray's address (default: RAY_ADDRESS, else the Ray that runs here)")
    parser.add_argument("--node-id", help="the Ray node to drain (default: all of this machine)")
    parser.add_argument("--endpoint", default=ENDPOINT, help=f"metadata service (default: {ENDPOINT})")
    options = parser.parse_args(argv)
    if options.now:
        started = time.time()
        if not drain(Notice(options.seconds, "this pod is stopping"), options.address, options.node_id):
            return 1
        wait_until_gone(options.seconds - (time.time() - started), options.address)
        return 0
    cloud = spot_cloud(options.endpoint)
    if cloud is None:
        log("no spot node: nothing to watch")
        return 0
    log(f"spot node on {cloud}: asking every {POLL_SECONDS[cloud]:g} s")
    while True:
        try:
            told = notice(cloud, options.endpoint)
        except (OSError, ValueError, KeyError, TypeError) as error:  # a hiccup of the service must not end the watch
            log(f"no answer from the metadata service: {error}")
            told = None
        if told is not None:
            return 0 if drain(told, options.address, options.node_id) else 1
        time.sleep(POLL_SECONDS[cloud])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
