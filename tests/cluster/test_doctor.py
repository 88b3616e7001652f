"""`raydr doctor`: what follows from hand-made facts, and what a real Ray of two nodes says."""

import dataclasses
import re

import pytest

from raydr.cluster import diagnosis, doctor, probe
from raydr.cluster.diagnosis import GIB, judge
from raydr.cluster.probe import Cluster, Facts, Gpu, Storage
from raydr.errors import UserError

VERSIONS = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.14.1", "raydr": "0.1.0", "numpy": "2.4.0"}
L4 = Gpu("NVIDIA L4", 23034 << 20)
GOOD = Facts(
    node="a" * 56, host="one", versions=VERSIONS, cpus=8, load=0.5, ram=32 * GIB, ram_free=24 * GIB, gpus=(L4,),
    torch_gpus=1, shm=16 * GIB, disk=200 * GIB, disk_free=100 * GIB, native_bf16=True, hub_seconds=0.2,
    hub_offline=False, base_cached=False, object_store=8 * GIB, ray_gpus=1,
)  # fmt: skip
OTHER = dataclasses.replace(GOOD, node="b" * 56, host="two")


def node(**changes):
    return dataclasses.replace(OTHER, **changes)


def verdict(name, *facts, storage=(), silent=None, **options):
    checks = judge(Cluster(list(facts), list(storage), silent or {}), doctor.SD15, **options)
    return next(check for check in checks if check.name == name)


def test_a_good_cluster_is_all_ok():
    stored = [Storage(fact.node, "", True, (GOOD.node, OTHER.node), 0.1, 0.1) for fact in (GOOD, OTHER)]
    checks = judge(Cluster([GOOD, OTHER], stored), doctor.SD15, needs_base=True)
    assert {check.state for check in checks} == {"ok"}, checks
    assert [check.name for check in checks] == [
        "nodes", "versions", "GPUs", "memory", "object store", "disk", "storage", "clock", "hub", "speed",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "changes", "state", "words"),
    [
        ("versions", {"versions": VERSIONS | {"ray": "2.59.0"}}, "bad", "ray 2.59.0 and 2.60.0"),
        ("versions", {"versions": VERSIONS | {"python": "3.12.1"}}, "bad", "python 3.11.7 and 3.12.1"),
        ("versions", {"versions": VERSIONS | {"python": "3.11.9"}}, "ok", "everywhere"),
        ("versions", {"versions": VERSIONS | {"torch": "2.14.1+cpu"}}, "ok", "everywhere"),
        ("versions", {"versions": VERSIONS | {"raydr": "missing"}}, "bad", "raydr 0.1.0 and missing"),
        ("versions", {"versions": VERSIONS | {"torch": "2.13.0"}}, "warn", "last bits"),
        ("GPUs", {"torch_gpus": 0}, "bad", "torch sees 0 of 1 GPUs on two"),
        ("GPUs", {"ray_gpus": 0}, "warn", "Ray offers 0 of 1 GPUs on two"),
        ("GPUs", {"gpus": (Gpu("Tesla T4", 15360 << 20),)}, "warn", "1 x NVIDIA L4 22 GiB, 1 x Tesla T4 15 GiB"),
        ("memory", {"ram_free": 7 * GIB}, "warn", "two"),
        ("memory", {"ram_free": GIB}, "bad", "Ray kills workers"),
        ("object store", {"shm": 64 << 20}, "warn", "/dev/shm is 67 MB on two and the object store 8.0 GiB"),
        ("disk", {"disk_free": 19 * GIB}, "warn", "19.0 GiB of 200.0 GiB free on two"),
        ("disk", {"disk_free": 9 * GIB}, "bad", "95 % full"),
        ("clock", {"skew_seconds": -3.0}, "warn", "two's clock is 3.00 s off"),
        ("clock", {"skew_seconds": 3.0, "skew_error_seconds": 2.0}, "ok", ""),
        ("clock", {"skew_seconds": 900.0}, "bad", "chrony"),
        ("hub", {"hub_seconds": None}, "warn", "two does not reach the hub"),
        ("hub", {"hub_seconds": None, "hub_offline": True}, "warn", "HF_HUB_OFFLINE"),
        ("hub", {"hub_seconds": None, "base_cached": True}, "ok", "cached on 1 of 2 nodes"),
        ("speed", {"cpus": 3, "load": 0.0}, "warn", "fewer than 4 CPUs a GPU on two"),
        ("speed", {"load": 30.0}, "warn", "two is busy with other work (load 30.0 on 8 CPUs)"),
    ],
)
def test_one_bad_node_is_named(name, changes, state, words):
    found = verdict(name, GOOD, node(**changes))
    assert found.state == state, found
    assert words in found.sentence


def test_a_needed_base_model_out_of_reach_is_bad():
    assert verdict("hub", node(hub_seconds=None), needs_base=True).state == "bad"
    checks = judge(Cluster([node(hub_seconds=None)]), "phantom", needs_base=True)
    assert next(check for check in checks if check.name == "hub").state == "ok"


def test_small_gpus_only():
    t4 = node(gpus=(Gpu("Tesla T4", 15360 << 20),))
    assert "wants 24 GiB" in verdict("GPUs", t4).sentence
    assert verdict("GPUs", node(gpus=(), torch_gpus=None, ray_gpus=0)).state == "warn"
    assert verdict("GPUs", node(gpus=(Gpu("GRID", 0),))).state == "ok"  # a virtual GPU without a size


def test_cpus_without_bf16_are_slow_only_where_they_train():
    assert "fp32" in verdict("speed", node(native_bf16=False, gpus=(), torch_gpus=None)).sentence
    assert verdict("speed", node(native_bf16=False)).state == "ok"


def test_another_ray_series_is_bad():
    old = node(versions=VERSIONS | {"ray": "2.55.1"})
    assert "ray==2.60.*" in verdict("versions", old).sentence


def test_storage_that_is_not_shared_or_not_exclusive():
    nodes = (GOOD.node, OTHER.node)
    alone = [Storage(name, "", True, (name,)) for name in nodes]
    found = verdict("storage", GOOD, OTHER, storage=alone)
    assert found.state == "bad"
    assert "what two writes is not there on one" in found.sentence
    loose = [Storage(name, "", name == GOOD.node, nodes) for name in nodes]
    assert "overwrote the first" in verdict("storage", GOOD, OTHER, storage=loose).sentence
    broken = [Storage(GOOD.node, "no such bucket"), Storage(OTHER.node, "", True, (OTHER.node,))]
    assert verdict("storage", GOOD, OTHER, storage=broken).sentence == "one: no such bucket"
    slow = [Storage(name, "", True, nodes, 0.1, 4.0) for name in nodes]
    assert "storage moves 0.5 MB/s on one" in verdict("speed", GOOD, OTHER, storage=slow).sentence


def test_silent_nodes():
    found = verdict("nodes", GOOD, silent={"c" * 56: "No module named 'raydr'"})
    assert found.state == "bad"
    assert "1 of 2 nodes could not be asked (node cccccccc: No module named 'raydr')" in found.sentence
    assert [check.state for check in judge(Cluster([], [], {"c" * 56: "gone"}), doctor.SD15)] == ["bad"]


@pytest.mark.parametrize(
    ("mode", "gcs", "nodes", "state"),
    [
        ("token", "10.0.0.7:6379", 9, "ok"),
        ("disabled", "10.0.0.7:6379", 2, "bad"),
        ("disabled", "10.0.0.7:6379", 1, "warn"),
        ("disabled", "127.0.0.1:6379", 1, "ok"),
    ],
)
def test_who_may_run_code(mode, gcs, nodes, state):
    assert diagnosis.check_auth(mode, gcs, nodes).state == state


def test_gpus_of_nvidia_smi():
    text = "NVIDIA L4, 23034\nNVIDIA A10G, 23028\nGRID A100, with a comma, [N/A]\n"
    assert probe.parse_gpus(text) == (L4, Gpu("NVIDIA A10G", 23028 << 20), Gpu("GRID A100, with a comma", 0))
    assert probe.parse_gpus("") == ()


def test_the_exit_code_and_the_table(capsys):
    lines = [diagnosis.ok("disk", "fine"), diagnosis.warn("hub", "[offline]")]
    assert doctor.show(lines) == 0
    assert doctor.show([*lines, diagnosis.bad("clock", "off")]) == 1
    assert "warn hub             [offline]" in capsys.readouterr().out


def test_the_jobs_api_is_no_address_to_attach_to():
    with pytest.raises(UserError, match="takes jobs"):
        doctor.run("http://127.0.0.1:8265")


def test_a_folder_or_an_unknown_hub_id_is_no_cached_base(tmp_path, monkeypatch):
    assert probe.is_cached(str(tmp_path))
    assert not probe.is_cached(str(tmp_path / "nosuch"))
    assert not probe.is_cached("nobody/nothing")


@pytest.fixture
def two_nodes(monkeypatch):
    import ray
    from ray.cluster_utils import Cluster as Nodes

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    sizes = {"num_cpus": 1, "object_store_memory": 100_000_000}
    nodes = Nodes(initialize_head=True, head_node_args={**sizes, "include_dashboard": False})
    nodes.add_node(**sizes)
    yield nodes.address
    ray.shutdown()
    nodes.shutdown()


def test_two_real_nodes(two_nodes, tmp_path, monkeypatch):
    """Facts of two nodes on this machine, a run folder that both write and read, nothing left behind."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # no name look-ups from a test
    out = tmp_path / "new"
    checks = {check.name: check for check in doctor.run(two_nodes, str(out))}
    assert "2 nodes answered" in checks["nodes"].sentence
    assert checks["versions"].state == "ok"
    assert checks["storage"].sentence == "shared by 2 nodes, the first writer wins"
    assert checks["clock"].state == "ok"
    assert float(re.search(r"at most ([0-9.]+) s", checks["clock"].sentence)[1]) < 1
    assert checks["authentication"].state == "bad"  # two nodes, no token
    assert "0.2 GiB" in checks["object store"].sentence or "200 MB" in checks["object store"].sentence
    assert not out.exists()


def test_a_node_writes_once_and_reads_what_is_there(tmp_path):
    """The node's side of the storage check, without Ray."""
    worker = probe.Probe.__ray_actor_class__("n1", "")
    url = str(tmp_path / "run")
    written = worker.write(url, "nonce")
    assert (written.problem, written.exclusive) == ("", True)
    assert worker.read(url, "nonce", ["n1", "n2"])[0] == ("n1",)
    assert not worker.write(url, "nonce").exclusive
    (tmp_path / "file").write_text("x")
    assert "a file stands where a folder is needed" in worker.write(str(tmp_path / "file"), "nonce").problem
