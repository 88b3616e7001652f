"""Declared metrics and the boards that draw them; what is recorded of events. No Ray is started."""

import json
import re
import time
from pathlib import Path

import pytest

import raydr
from raydr import cli
from raydr.cluster import telemetry
from raydr.cluster.quota import Target

BOARDS = Path(raydr.__file__).parent / "assets" / "dashboards"


@pytest.fixture
def recorded(monkeypatch):
    """[(name, value, tags)] of what is recorded, instead of Ray's instruments."""
    found = []

    class Instrument:
        def __init__(self, name):
            self.name = name

        def set(self, value, tags):
            found.append((self.name, value, tags))

        inc = observe = set

    monkeypatch.setattr(telemetry, "_instrument", Instrument)
    return found


def boards():
    return {path.name: json.loads(path.read_text()) for path in BOARDS.glob("*.json")}


def panels(board):
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def expressions():
    return [target["expr"] for board in boards().values() for panel in panels(board) for target in panel["targets"]]


def test_boards_draw_what_is_declared_and_nothing_else():
    declared = {name for metric in telemetry.METRICS for name in telemetry.exported(metric)}
    drawn = set(re.findall(r"ray_raydr_\w+", " ".join(expressions())))
    assert drawn <= declared
    for metric in telemetry.METRICS:
        assert drawn & set(telemetry.exported(metric)), f"no board shows {metric}"


def test_boards_group_by_tags_that_their_metrics_have():
    for expression in expressions():
        tags = {
            tag
            for name, metric in telemetry.METRICS.items()
            if any(re.search(rf"{exported}\b", expression) for exported in telemetry.exported(name))
            for tag in metric.tags
        }
        for grouped in re.findall(r"by \(([^)]*)\)", expression):
            own = {"le", *tags} if "ray_raydr_" in expression else {"Name", "instance"}
            assert set(grouped.split(", ")) <= own, expression


def test_boards_name_no_server_and_fit_rays_grafana():
    found = boards()
    assert len({board["uid"] for board in found.values()}) == len(found) == 2
    for name, board in found.items():
        assert "://" not in json.dumps(board), name
        assert (
            board["templating"]["list"][0] | {"name": "datasource", "type": "datasource"}
            == (board["templating"]["list"][0])
        )
        ids = [panel["id"] for panel in board["panels"]]
        assert len(ids) == len(set(ids))
        for panel in panels(board):
            assert panel["description"]
            assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
            # Ray's own boards have this variable, too: the same session is chosen in all.
            assert all('SessionName=~"$SessionName"' in target["expr"] for target in panel["targets"])


def test_panels_do_not_overlap():
    for board in boards().values():
        taken = set()
        for panel in board["panels"]:
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert place["x"] + place["w"] <= 24
            assert not cells & taken, panel["title"]
            taken |= cells


def test_dashboards_command_writes_the_boards(tmp_path, capsys):
    assert cli.main(["dashboards", "--to", str(tmp_path / "new" / "boards")]) == 0
    written = {path.name: path.read_bytes() for path in (tmp_path / "new" / "boards").iterdir()}
    assert written == {path.name: path.read_bytes() for path in BOARDS.glob("*.json")}
    (tmp_path / "file").write_text("")
    assert cli.main(["dashboards", "--to", str(tmp_path / "file")]) == 2
    assert "name another --to" in " ".join(capsys.readouterr().out.split())


def test_tags_are_the_declared_ones(recorded):
    telemetry.record("raydr_images", 8, kind="plain", grade=3)
    assert recorded == [("raydr_images", 8.0, {"kind": "plain", "grade": "3"})]
    with pytest.raises(AssertionError, match="takes the tags"):
        telemetry.record("raydr_images", 8, kind="plain")
    telemetry.record("raydr_images_accepted", 0, kind="plain", grade=3)  # Ray refuses to count nothing
    assert len(recorded) == 1


def test_a_shard(recorded):
    telemetry.shard("ecc", 1, [0.25, 0.75], accepted=1)
    tags = {"kind": "ecc", "grade": "1"}
    assert recorded == [
        ("raydr_images", 2.0, tags),
        ("raydr_images_accepted", 1.0, tags),
        ("raydr_score", 0.25, tags),
        ("raydr_score", 0.75, tags),
    ]


def test_events_of_fine_tuning(recorded):
    watched = telemetry.Finetuning("ecc", (1,))
    watched({"event": "ecc", "step": 40, "ecc_pool": 6, "ecc_acceptance": 0.1875, "ecc_candidates": 32})
    step = {"event": "step", "step": 43, "steps": 80, "instance": 0.2, "prior": 0.1, "loss": 0.3, "grad_norm": 1.5}
    watched(step | {"validation": None})
    values = {(name, tags.get("term")): value for name, value, tags in recorded if name != "raydr_latency_seconds"}
    assert values == {
        ("raydr_ecc_acceptance", None): 0.1875,
        ("raydr_ecc_pool_images", None): 6.0,
        ("raydr_loss", "instance"): 0.2,
        ("raydr_loss", "prior"): 0.1,
        ("raydr_loss", "loss"): 0.3,
        ("raydr_gradient_norm", None): 1.5,
        ("raydr_finetune_progress", None): 43 / 80,
        ("raydr_ecc_pool_age_steps", None): 3.0,
    }
    whats = [tags["what"] for name, _, tags in recorded if name == "raydr_latency_seconds"]
    assert whats == ["ecc refresh", "step"]
    assert telemetry.Finetuning("plain", (0, 1, 2, 3, 4))._tags["grade"] == "all"


def test_quotas_and_counts(recorded):
    wanted = [Target("plain-g1-a", 1, least=4, accepted=0, most=4), Target("ecc-g3-b", 3, 4, accepted=50, most=99)]
    rows = [
        {"generator_id": "plain-g1-a", "grade": 1, "shards": 3, "accepted": 0},
        {"generator_id": "ecc-g3-b", "grade": 3, "shards": 20, "accepted": 60},
    ]
    telemetry.quota(rows, wanted)
    assert [(value, tags["kind"]) for _, value, tags in recorded] == [(0.75, "plain"), (1.0, "ecc")]


def test_held_resources():
    total = {"CPU": 8.0, "GPU": 2.0, "memory": 1e9}
    assert telemetry.held(total, {"CPU": 3.0}) == {"CPU": 5.0, "GPU": 2.0}
    assert telemetry.held({"CPU": 2.0}, {"CPU": 2.0}) == {"CPU": 0.0}


def test_measuring_without_ray_reports_nothing(recorded):
    with telemetry.measured("ingest", every_seconds=0.01) as usage:
        time.sleep(0.05)
    assert usage.seconds >= 0.05
    assert usage.peak_bytes > 1e6
    assert recorded == []


def test_latency_of_what_fails_is_not_observed(recorded):
    with telemetry.timed("synthesize", "commit"):
        pass
    with pytest.raises(KeyError), telemetry.timed("synthesize", "commit"):
        raise KeyError
    assert len(recorded) == 1
