"""A base is fetched once, staged once, and copied once to a node: with the small base as a folder and as a hub's."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from s3_server import serve

from raydr.cluster import staging
from raydr.diffusion.model import PHANTOM_BASE, load_base
from raydr.errors import DamagedData, UserError
from raydr.storage import Run

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub cache that holds the small base as `lab/eye` at one commit, and files that nobody needs. Offline."""
    home = tmp_path / "hub" / "models--lab--eye"
    snapshot = home / "snapshots" / COMMIT
    shutil.copytree(PHANTOM_BASE, snapshot)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return "lab/eye"


@pytest.fixture(scope="module")
def bucket():
    with serve() as address:
        yield address


def unet_of(base):
    return load_base(base).unet.state_dict()


def test_one_machine_with_a_local_run_stages_nothing(tmp_path):
    run = Run(str(tmp_path / "run"))
    assert staging.prepare(str(PHANTOM_BASE), None, run, num_nodes=1) is None
    assert staging.prepare("phantom", None, run, num_nodes=9) is None
    assert staging.local(str(PHANTOM_BASE), None, run) == str(PHANTOM_BASE)
    assert not (tmp_path / "run").exists()


def test_a_hub_base_is_staged_with_commit_and_content(hub, tmp_path, capsys):
    run = Run(str(tmp_path / "run"))
    record = staging.prepare(hub, "main", run, num_nodes=2)
    assert (record.base, record.revision, record.commit) == (hub, "main", COMMIT)
    assert "once for all nodes" in capsys.readouterr().out
    # The same content from a folder has the same hash, under another name.
    folder = staging.prepare(str(PHANTOM_BASE), None, Run(str(tmp_path / "other")), num_nodes=2)
    assert folder.commit is None
    place = staging.local(hub, "main", run)
    assert Path(place) == tmp_path / "run" / "bases" / staging.name_of(hub, "main")
    assert load_base(place).latent_factor == load_base(str(PHANTOM_BASE)).latent_factor


def test_the_hub_is_asked_once(hub, tmp_path, monkeypatch):
    run = Run(str(tmp_path / "run"))
    first = staging.prepare(hub, None, run, num_nodes=2)
    monkeypatch.setattr(staging, "_source", lambda base, revision: pytest.fail("the hub was asked again"))
    assert staging.prepare(hub, None, run, num_nodes=2) == first
    assert staging.prepare(hub, None, run, num_nodes=1) == first  # a later command on one machine uses it too
    assert staging.local(hub, None, run).startswith(str(tmp_path / "run"))


def test_what_cannot_be_fetched_is_one_sentence(hub, tmp_path):
    run = Run(str(tmp_path / "run"))
    for base in ("lab/nothing", "../../etc/passwd", "a b"):
        with pytest.raises(UserError, match="could not be fetched from the hub"):
            staging.prepare(base, None, run, num_nodes=2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no model_index\.json"):
        staging.prepare(str(tmp_path / "empty"), None, run, num_nodes=2)
    assert not (tmp_path / "run").exists()


FETCH = """
import sys
from raydr.cluster import staging
from raydr.storage import Run

print(staging.local(sys.argv[1], None, Run(sys.argv[2])))
"""


def test_a_node_copies_once_however_many_processes_ask(bucket, tmp_path, monkeypatch):
    base = str(tmp_path / "eye")
    shutil.copytree(PHANTOM_BASE, base)
    run = Run("s3://bucket/staged")
    record = staging.prepare(base, None, run, num_nodes=1)
    shutil.rmtree(base)  # the driver's folder is not on the nodes
    downloads = []
    real = Run.download
    monkeypatch.setattr(Run, "download", lambda self, key, to: downloads.append(to.exists()) or real(self, key, to))
    monkeypatch.setenv("RAYDR_CACHE", str(tmp_path / "node"))
    workers = [
        subprocess.Popen([sys.executable, "-c", FETCH, base, run.url], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    places = {worker.communicate(timeout=120)[0].strip() for worker in workers}
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    (place,) = places
    assert place == staging.local(base, None, run)
    assert downloads == [True]  # ours came last and found it there
    assert [path.name for path in (tmp_path / "node" / "bases").iterdir() if not path.name.startswith(".")] == [
        f"{staging.name_of(base, None)}-{record.content}"
    ]
    ours, shipped = unet_of(place), unet_of("phantom")
    assert all((ours[name] == shipped[name]).all() for name in shipped)
    # Another run with the same base finds the node's copy.
    shutil.copytree(PHANTOM_BASE, base)
    other = Run("s3://bucket/second")
    assert staging.prepare(base, None, other, num_nodes=1) == record
    assert staging.local(base, None, other) == place


def test_damage_on_the_way_is_seen(bucket, tmp_path, monkeypatch):
    run = Run("s3://bucket/damaged")
    staging.prepare(str(PHANTOM_BASE), None, run, num_nodes=1)
    key = f"bases/{staging.name_of(str(PHANTOM_BASE), None)}"
    run.replace(f"{key}/unet/config.json", b"{}")
    monkeypatch.setenv("RAYDR_CACHE", str(tmp_path))
    with pytest.raises(DamagedData, match=r"unet/config\.json"):
        staging.local(str(PHANTOM_BASE), None, run)
    assert [path for path in (tmp_path / "bases").iterdir() if not path.name.startswith(".")] == []
    run.replace_json(f"{key}.json", {"base": 1})
    with pytest.raises(DamagedData, match="is damaged"):
        staging.local(str(PHANTOM_BASE), None, run)


def test_a_killed_staging_is_made_whole(bucket, tmp_path):
    """Files without the mark, and the mark without the record: both are finished by the next start."""
    base = str(PHANTOM_BASE)
    run, key = Run("s3://bucket/killed"), f"bases/{staging.name_of(str(PHANTOM_BASE), None)}"
    run.create(f"{key}/unet/config.json", b"half")
    assert staging.local(base, None, run) == base  # not staged yet
    record = staging.prepare(base, None, run, num_nodes=1)
    assert json.loads(run.read(f"{key}/unet/config.json"))["_class_name"] == "UNet2DConditionModel"
    run.delete(f"{key}.json")
    assert staging.prepare(base, None, run, num_nodes=1) == record


def test_names_stay_inside_the_run():
    for base in ("../../etc", "/a/b/../..", "lab/eye", "x" * 500, "..", ""):
        name = staging.name_of(base, None)
        assert Run("/r").path(f"bases/{name}").parent == Path("/r/bases")
    assert staging.name_of("lab/eye", None) != staging.name_of("lab/eye", "v2") != staging.name_of("bal/eye", "v2")
