"""The spot poller against a metadata service on loopback and a real Ray node that is drained."""

import json
import os
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from ray.core.generated import common_pb2

from raydr.cluster import spot


class Metadata:
    """A cloud's metadata service: what each path answers; AWS's paths want a session token."""

    def __init__(self, cloud, life_cycle="spot"):
        self.paths, self.asked = {}, []
        if cloud == "aws":
            self.paths["/latest/meta-data/instance-life-cycle"] = life_cycle
        if cloud == "gcp":
            preemptible = "TRUE" if life_cycle == "spot" else "FALSE"
            self.paths["/computeMetadata/v1/instance/scheduling/preemptible"] = preemptible
            self.paths["/computeMetadata/v1/instance/preempted"] = "FALSE"
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self):
                good = self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
                self.answer(200 if good else 400, "session" if good else "")

            def do_GET(self):
                service.asked.append(self.path)
                if self.path.startswith("/latest") and self.headers["X-aws-ec2-metadata-token"] != "session":
                    return self.answer(401, "")
                if self.path.startswith("/computeMetadata") and self.headers["Metadata-Flavor"] != "Google":
                    return self.answer(403, "")
                body = service.paths.get(self.path)
                return self.answer(404 if body is None else 200, body or "")

            def answer(self, status, body):
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def interrupt(self, seconds):
        at = datetime.now(UTC) + timedelta(seconds=seconds)
        self.paths["/latest/meta-data/spot/instance-action"] = json.dumps(
            {"action": "terminate", "time": f"{at:%Y-%m-%dT%H:%M:%SZ}"}
        )


@pytest.fixture
def metadata():
    made = []

    def make(*args, **options):
        made.append(Metadata(*args, **options))
        return made[-1]

    yield make
    for service in made:
        service.server.shutdown()
        service.server.server_close()


@pytest.mark.parametrize(
    ("cloud", "life_cycle", "expected"),
    [("aws", "spot", "aws"), ("aws", "on-demand", None), ("gcp", "spot", "gcp"), ("gcp", "standard", None)],
)
def test_spot_nodes_are_told_from_others(metadata, cloud, life_cycle, expected):
    assert spot.spot_cloud(metadata(cloud, life_cycle).url) == expected


def test_a_machine_outside_a_cloud_is_no_spot_node(metadata, capsys):
    service = metadata("aws")
    service.server.shutdown()
    service.server.server_close()
    assert spot.spot_cloud(service.url) is None
    assert spot.main(["--endpoint", service.url]) == 0
    assert "nothing to watch" in capsys.readouterr().out


def test_a_notice_of_aws_says_when(metadata):
    service = metadata("aws")
    assert spot.notice("aws", service.url) is None  # 404: nothing planned
    service.interrupt(90)
    told = spot.notice("aws", service.url)
    assert 86 < told.seconds <= 90
    assert "terminate" in told.text
    service.interrupt(-5)  # read too late: no time left, but no negative one
    assert spot.notice("aws", service.url).seconds == 0


def test_a_notice_of_google_leaves_thirty_seconds(metadata):
    service = metadata("gcp")
    assert spot.notice("gcp", service.url) is None
    service.paths["/computeMetadata/v1/instance/preempted"] = "TRUE"
    assert spot.notice("gcp", service.url).seconds == 30


def test_a_proxy_is_not_asked_for_metadata(metadata, monkeypatch):
    service = metadata("gcp")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert spot.spot_cloud(service.url) == "gcp"


def test_a_drain_that_ray_never_takes_ends_with_the_notice(monkeypatch, capsys):
    def refuse(address):
        raise ConnectionError("nobody here")

    monkeypatch.setattr(spot, "connect", refuse)
    started = time.monotonic()
    assert spot.drain(spot.Notice(3.0, "test")) is False
    assert 1.5 < time.monotonic() - started < 4
    assert capsys.readouterr().out.count("nobody here") == 2


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A head and a worker node; Ray's own end is `Cluster.shutdown`."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_AUTH_MODE"] = "disabled"
    nodes = {"num_cpus": 1, "object_store_memory": 100_000_000}
    made = Cluster(initialize_head=True, head_node_args={**nodes, "include_dashboard": False})
    made.worker_args = nodes
    yield made
    made.shutdown()
    os.environ.pop("RAY_AUTH_MODE")


def states(address):
    """{node id: (alive, reason of death)} as Ray's control service tells."""
    nodes = spot.connect(address).get_all_node_info()
    return {key.hex(): (node.state == spot.ALIVE, node.death_info.reason) for key, node in nodes.items()}


def poller(*argv):
    return subprocess.Popen(
        [sys.executable, "-m", "raydr.cluster.spot", *argv], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_the_poller_drains_its_node_and_no_other(cluster, metadata):
    node = cluster.add_node(**cluster.worker_args)
    head = cluster.head_node.node_id
    service = metadata("aws")
    process = poller("--address", cluster.address, "--endpoint", service.url)
    try:
        end = time.monotonic() + 60
        while "/latest/meta-data/spot/instance-action" not in service.asked:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.2)
        assert states(cluster.address)[node.node_id][0]
        service.interrupt(60)
        text, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, text
    assert "draining 1 Ray node(s)" in text  # the head has the same IP and is left out
    end = time.monotonic() + 20
    while states(cluster.address)[node.node_id][0] and time.monotonic() < end:
        time.sleep(0.3)
    after = states(cluster.address)
    assert after[node.node_id] == (False, common_pb2.NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED)
    assert after[head][0]


def test_a_stopping_pod_waits_until_its_node_has_ended(cluster):
    node = cluster.add_node(**cluster.worker_args)
    process = poller("--now", "--seconds", "40", "--address", cluster.address)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 0, text
    assert not states(cluster.address)[node.node_id][0]
