"""A Ray cluster of several nodes on this machine, in a process of its own, whose nodes can be taken away.

    with several(2) as nodes:
        nodes.kill("train_member")     # the node on which that runs, at once, as a spot node dies
        nodes.add()

A token is required. The head has no CPUs, so that all work is on nodes that may die.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import raydr

HOLD = """
import contextlib, socket, sys, time
import psutil
from ray._private.utils import write_ray_address
from ray.cluster_utils import Cluster

def free():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]

# A fixed default port of the agent may be another Ray's of this machine.
def sizes(cpus):
    return dict(num_cpus=cpus, object_store_memory=100_000_000, dashboard_agent_listen_port=free())

temp, num_nodes, cpus = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
cluster = Cluster(initialize_head=True, head_node_args=dict(
    **sizes(0), include_dashboard=True, dashboard_port=free(), temp_dir=temp))
# As `ray start` does; else a job looks for a Ray among the machine's processes, and may find another's.
write_ray_address(cluster.address, temp)
nodes = [cluster.add_node(**sizes(cpus)) for _ in range(num_nodes)]
agent = cluster.head_node._ray_params.dashboard_agent_listen_port
print(cluster.webui_url, cluster.address, agent, flush=True)

def titles(node):
    found = []
    try:  # the raylet, or any of its workers, may end while it is asked
        for worker in psutil.Process(node.all_processes["raylet"][0].process.pid).children():
            with contextlib.suppress(psutil.Error):
                found.append(" ".join(worker.cmdline()))
    except psutil.Error:
        pass
    return found

def works_on(node, title):
    return any(title in each for each in titles(node))

for line in sys.stdin:
    verb, *rest = line.split()
    if verb == "add":
        nodes.append(cluster.add_node(**sizes(cpus)))
        print(nodes[-1].node_id, flush=True)
    elif verb == "end":
        victim = next(node for node in nodes if node.node_id.startswith(rest[0]))
        nodes.remove(victim)
        cluster.remove_node(victim, allow_graceful=False)
        print(victim.node_id, flush=True)
    elif verb == "kill":
        title, seconds, end = rest[0], float(rest[1]), time.time() + float(rest[2])
        victim = None
        while victim is None and time.time() < end:
            victim = next((node for node in nodes if works_on(node, title)), None)
            time.sleep(0.1)
        if victim is None:
            print("none,", "only", [titles(node) for node in nodes], flush=True)
            continue
        time.sleep(seconds)
        busy = works_on(victim, title)
        name = victim.node_id
        nodes.remove(victim)
        cluster.remove_node(victim, allow_graceful=False)
        print(name if busy else "idle", flush=True)
cluster.shutdown()
"""


def installed(folder: Path) -> str:
    """A PYTHONPATH with raydr as it lies in site-packages, so that `raydr submit` sends no files.

    Each new node unpacks a job's files anew, into a folder that nodes of one machine share: it is gone for a moment
    under the workers of the others, and `os.getcwd` raises FileNotFoundError there.
    """
    (folder / "package").mkdir()
    (folder / "package" / "raydr").symlink_to(Path(raydr.__file__).parent)
    return str(folder / "package")


@dataclass
class Nodes:
    """`url` of the Jobs API, `gcs` address, the head's `agent` port, and a client's environment with the token."""

    process: subprocess.Popen
    url: str
    gcs: str
    agent: int
    environment: dict[str, str]

    def _ask(self, line: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        assert answer, "the cluster's process has ended"
        return answer

    def add(self) -> str:
        """Start one more node; its id."""
        return self._ask("add")

    def kill(self, title: str, seconds: float = 0.0, patience: float = 120.0) -> str:
        """End the node on which a worker with `title` in its name runs, `seconds` after it was seen; its id.

        AssertionError where none came within `patience` seconds, or where it had ended by then.
        """
        answer = self._ask(f"kill {title} {seconds} {patience}")
        assert not answer.startswith(("none", "idle")), f"no {title} was running: {answer}"
        return answer

    def end(self, node: str) -> None:
        """End the node whose id begins with `node`, at once."""
        self._ask(f"end {node}")

    def raydr(self, arguments: list[str], seconds: float = 280) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "raydr", *arguments],
            env=self.environment, capture_output=True, text=True, timeout=seconds,
        )  # fmt: skip


@contextlib.contextmanager
def several(num_nodes: int, cpus: int = 1) -> Iterator[Nodes]:
    """A head without CPUs and `num_nodes` nodes of `cpus` CPUs."""
    folder = Path(tempfile.mkdtemp(prefix="rn", dir="/tmp"))
    (folder / "token").write_text("0123456789abcdef" * 4)
    client = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "RAYDR_"))}
    client |= {"RAY_AUTH_TOKEN_PATH": str(folder / "token"), "PYTHONPATH": installed(folder)}
    # A job's `python` is the first on the PATH of the cluster.
    client |= {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    log = open(folder / "log", "w")  # noqa: SIM115 (the process keeps it)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder / "r"), str(num_nodes), str(cpus)],
        env=client | {"RAY_AUTH_MODE": "token"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (folder / "log").read_text()
        web, gcs, agent = line.split()
        yield Nodes(process, f"http://{web}", gcs, int(agent), client)
    finally:
        log.close()
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
        shutil.rmtree(folder, ignore_errors=True)
