"""`raydr submit` against Ray's own Jobs API, token required."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from raydr import cli

ROOT = Path(cli.__file__).parents[1]

HOLD = """
import socket, sys
from ray._private.utils import write_ray_address
from ray.cluster_utils import Cluster

def free():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]

# Jobs go through the agent, whose fixed default port another Ray of this machine may hold.
cluster = Cluster(initialize_head=True, head_node_args=dict(
    num_cpus=2, object_store_memory=150_000_000, include_dashboard=True, temp_dir=sys.argv[1],
    dashboard_port=free(), dashboard_agent_listen_port=free()))
# As `ray start` does; else a job looks for a Ray among the machine's processes, and may find another's.
write_ray_address(cluster.address, sys.argv[1])
print(cluster.webui_url, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture(scope="module")
def cluster():
    """(URL of the Jobs API, environment of a client with the token): Ray in a process of its own."""
    folder = Path(tempfile.mkdtemp(prefix="rj", dir="/tmp"))
    (folder / "token").write_text("0123456789abcdef" * 4)
    client = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    client |= {"RAY_AUTH_TOKEN_PATH": str(folder / "token"), "PYTHONPATH": str(ROOT)}
    # A job's `python` is the first on the PATH of the cluster.
    client |= {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder / "r")],
        env=client | {"RAY_AUTH_MODE": "token"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        assert line, "Ray did not start"
        yield f"http://{line.strip()}", client
    finally:
        process.stdin.close()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def raydr(arguments, environment, **options):
    return subprocess.run(
        [sys.executable, "-m", "raydr", *arguments],
        env=environment, capture_output=True, text=True, timeout=200, **options,
    )  # fmt: skip


@pytest.mark.slow
def test_a_client_without_the_token_is_refused(cluster, tmp_path):
    url, client = cluster
    for token in ("", "wrong" * 10):
        (tmp_path / "token").write_text(token)
        stranger = client | {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
        answer = raydr(["submit", "status", "/nowhere", "--address", url], stranger)
        assert answer.returncode == 2
        assert "refuses this token" in answer.stdout
        assert "Traceback" not in answer.stdout + answer.stderr


@pytest.mark.slow
def test_a_job_runs_fails_and_is_resumed(cluster, tmp_path):
    """A stage of the debug recipe as a job: a failure first (exit 2), then --resume, then nothing left to do."""
    url, client = cluster
    out = tmp_path / "out"
    out.write_text("in the way")
    command = ["submit", "ingest", "--address", url, "--recipe", "debug", "--out", str(out), "--shape", "laptop"]
    failed = raydr(command, client)
    assert failed.returncode == 2, failed.stdout + failed.stderr
    assert "ended FAILED (exit code 2)" in failed.stdout
    again = raydr(command, client)
    assert again.returncode == 2
    assert "--resume" in again.stdout
    out.unlink()
    resumed = raydr([*command, "--resume"], client)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "photographs" in resumed.stdout
    assert json.loads((out / "recipe.json").read_text())["begun"] == ["ingest"]
    finished = raydr(command, client)
    assert finished.returncode == 0
    assert "finished before" in finished.stdout


@pytest.mark.slow
def test_ray_s_own_command_sends_a_job(cluster, tmp_path):
    """As README has it: the plan of a stage, in the shape of a cluster, made on the cluster from what was uploaded."""
    url, client = cluster
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", url, "--working-dir", "."]
    stage = ["--", "python", "jobs/sweep.py", "--recipe", "debug", "--out", str(tmp_path / "out"), "--dry-run"]
    done = subprocess.run(
        [*command, *stage], cwd=ROOT, env=client | {"RAY_AUTH_MODE": "token"},
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trials of" in done.stdout
    assert not (tmp_path / "out").exists()
    refused = subprocess.run([*command, *stage], cwd=ROOT, env=client, capture_output=True, text=True, timeout=200)
    assert refused.returncode != 0  # README says that this command wants RAY_AUTH_MODE


class Wire:
    """A TCP relay to the cluster that can be cut: a laptop's tunnel."""

    def __init__(self, url):
        host, port = url.removeprefix("http://").split(":")
        self.target, self.open, self.up = (host, int(port)), [], True
        self.server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.server.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                near, _ = self.server.accept()
            except OSError:
                return
            if not self.up:
                near.close()
                continue
            far = socket.create_connection(self.target)
            self.open += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self.copy, args=(one, other), daemon=True).start()

    def copy(self, source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)

    def cut(self):
        self.up = False
        for end in self.open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self.open = []


def read_until(process, text):
    lines = []
    while not lines or text not in lines[-1]:
        lines.append(process.stdout.readline())
        assert lines[-1], lines
    return lines


@pytest.mark.slow
def test_one_client_leaves_another_joins_and_loses_its_line(cluster, tmp_path):
    url, client = cluster
    wire = Wire(url)
    tail = ["--recipe", "debug", "--out", str(tmp_path / "out"), "--shape", "laptop"]
    command = [sys.executable, "-m", "raydr", "submit", "ingest", *tail, "--address"]
    first = subprocess.Popen([*command, url], env=client, stdout=subprocess.PIPE, text=True)
    read_until(first, "Running entrypoint")
    second = subprocess.Popen([*command, wire.url], env=client, stdout=subprocess.PIPE, text=True)
    joined = read_until(second, "Running entrypoint")
    assert "following it" in joined[0]
    wire.cut()
    first.send_signal(signal.SIGINT)
    left, _ = first.communicate(timeout=60)
    assert first.returncode == 1
    assert "The job goes on" in left
    before = "".join([*joined, *read_until(second, "connection lost")])
    wire.up = True
    rest, _ = second.communicate(timeout=120)
    wire.server.close()
    assert second.returncode == 0, rest
    for line in ("Running entrypoint", "raydr ingest  recipe debug", "photographs ...", "photographs, training counts"):
        assert (before + rest).count(line) == 1, before + rest  # nothing twice, nothing lost
    assert "finished" in rest


@pytest.mark.slow
def test_doctor_through_the_jobs_api(cluster, tmp_path):
    url, client = cluster
    for _ in range(2):  # a check is made anew each time
        answer = raydr(["doctor", "--address", url, "--out", str(tmp_path / "run")], client)
        assert "a token is required" in answer.stdout, answer.stdout + answer.stderr
        assert "the first writer wins" in answer.stdout
        assert answer.returncode == 0
