"""A cluster with a token is shut to whoever lacks it: control service, raylet, dashboard, Jobs API and agent.

Only the metrics ports answer without one, which is why cluster.yaml's security group opens nothing but SSH. A Ray that
raydr itself starts, on a laptop, is on the loopback alone.
"""

import contextlib
import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import grpc
import psutil
import pytest
import requests
from nodes import several

import raydr

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TOKEN = "0123456789abcdef" * 4
STRANGERS = {"no token": {}, "a wrong token": {"Authorization": "Bearer " + "f" * 64}}
FRIEND = {"Authorization": f"Bearer {TOKEN}"}

ATTACH = """
import sys, ray
ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
print("NODES", [node["NodeManagerPort"] for node in ray.nodes()], [node["MetricsExportPort"] for node in ray.nodes()])
"""


LAPTOP = """
import sys
from raydr.cluster import session
from raydr.shapes import Shape

with session.session(Shape(num_cpus=1)):
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def head():
    with several(0) as nodes:
        yield nodes


def attach(head, **environment):
    return subprocess.run(
        [sys.executable, "-c", ATTACH, head.gcs],
        env=head.environment | environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.fixture(scope="module")
def ports(head):
    """(raylet's port, metrics port), as a client with the token sees them."""
    done = attach(head, RAY_AUTH_MODE="token")
    assert "NODES" in done.stdout, done.stderr
    raylet, metrics = re.search(r"NODES \[(\d+)\] \[(\d+)\]", done.stdout).groups()
    return int(raylet), int(metrics)


def listening(pid):
    """{(address, port): command} of every TCP socket on which a process or one of its descendants listens."""
    process, found = psutil.Process(pid), {}
    for each in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            title = " ".join(each.cmdline())
            sockets = [item for item in each.net_connections("tcp") if item.status == psutil.CONN_LISTEN]
            # Ray's own servers are bound to IPv4 addresses in IPv6's form.
            found |= {(item.laddr.ip.removeprefix("::ffff:"), item.laddr.port): title for item in sockets}
    return found


def call(address, method, headers):
    """Status code of a gRPC call with an empty request; OK where it was let in."""
    with grpc.insecure_channel(address) as channel:
        stub = channel.unary_unary(method, lambda message: message, lambda message: message)
        try:
            stub(b"", timeout=20, metadata=[(name.lower(), value) for name, value in headers.items()])
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def test_a_driver_without_the_token_cannot_attach(head, tmp_path):
    (tmp_path / "token").write_text("f" * 64)
    for environment in (
        {"RAY_AUTH_MODE": "disabled"},
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")},
    ):
        done = attach(head, **environment)
        assert done.returncode != 0
        assert "NODES" not in done.stdout


@pytest.mark.parametrize("who", STRANGERS)
def test_control_service_and_raylet(head, ports, who):
    methods = {
        head.gcs: "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
        f"{head.gcs.rsplit(':', 1)[0]}:{ports[0]}": "/ray.rpc.NodeManagerService/GetNodeStats",
    }
    for address, method in methods.items():
        assert call(address, method, STRANGERS[who]) == grpc.StatusCode.UNAUTHENTICATED, method
        assert call(address, method, FRIEND) == grpc.StatusCode.OK, method


@pytest.mark.parametrize("who", STRANGERS)
def test_dashboard_jobs_and_agent(head, who):
    agent = f"http://127.0.0.1:{head.agent}"
    job = {"entrypoint": "touch /tmp/owned", "submission_id": "stranger"}
    asked = [
        requests.get(f"{head.url}/api/jobs/", headers=STRANGERS[who], timeout=20),
        requests.post(f"{head.url}/api/jobs/", headers=STRANGERS[who], json=job, timeout=20),
        requests.get(f"{head.url}/api/v0/nodes", headers=STRANGERS[who], timeout=20),
        requests.get(f"{head.url}/nodes?view=summary", headers=STRANGERS[who], timeout=20),
        requests.get(f"{head.url}/api/cluster_status", headers=STRANGERS[who], timeout=20),
        requests.post(f"{agent}/api/job_agent/jobs/", headers=STRANGERS[who], json=job, timeout=20),
        requests.get(f"{agent}/api/job_agent/jobs/stranger/logs", headers=STRANGERS[who], timeout=20),
    ]
    assert {answer.url: answer.status_code for answer in asked if answer.status_code not in (401, 403)} == {}
    welcome = requests.get(f"{head.url}/api/jobs/", headers=FRIEND, timeout=20)
    assert welcome.status_code == 200
    assert "stranger" not in welcome.text


def test_metrics_answer_without_a_token(ports):
    """What README warns of. Should this fail one day, Ray has closed it, and the warning can go."""
    with urllib.request.urlopen(f"http://127.0.0.1:{ports[1]}/metrics", timeout=30) as answer:
        assert answer.status == 200


def test_strangers_get_metrics_and_a_log_in_page(head):
    """Every port of every process of the head is asked; README's table of what is open has no other."""
    open_ports = listening(head.process.pid)
    assert len(open_ports) >= 8, open_ports
    answered = {}
    for address, port in open_ports:
        there = "127.0.0.1" if address in ("0.0.0.0", "::") else address
        for path in ("/metrics", "/", "/api/jobs/", "/nodes?view=summary", "/api/v0/actors", "/logs"):
            try:
                answer = requests.get(f"http://{there}:{port}{path}", timeout=10)
            except requests.RequestException:  # gRPC and Ray's own protocols: no path will get another answer
                break
            if answer.ok:
                answered[port, path] = answer.text
    metrics = {port for port, path in answered if path == "/metrics"}
    assert metrics
    for (port, path), text in answered.items():
        # Servers of metrics give them under any path.
        assert port in metrics or (port, path) == (int(head.url.rsplit(":", 1)[1]), "/"), (open_ports, path)
        assert port not in metrics or re.match(r"# (HELP|TYPE|EOF)|$", text), (port, path, text[:200])


def test_a_laptop_s_ray_is_on_loopback_alone(ray_temp):
    """Also its metrics, which answer without a token."""
    process = subprocess.Popen(
        [sys.executable, "-c", LAPTOP], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(raydr.__file__).parents[1])},
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "ready\n"
        time.sleep(10)  # the dashboard and its agent open their ports last
        found = listening(process.pid)
    finally:
        process.communicate(timeout=60)
    assert len(found) >= 6, found
    assert {address for address, _ in found} == {"127.0.0.1"}, found
