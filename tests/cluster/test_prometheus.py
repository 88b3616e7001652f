"""Every panel of the boards asks a real Prometheus, which scrapes a real run: each query finds something."""

import contextlib
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import yaml

import raydr

PROMETHEUS = shutil.which("prometheus")
BOARDS = Path(raydr.__file__).parent / "assets" / "dashboards"
# What Grafana would put in for its variables.
VARIABLES = {"$SessionName": ".+", "$__rate_interval": "10s", "$__range": "15m"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(PROMETHEUS is None, reason="needs Prometheus (Debian: apt-get install prometheus)"),
]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def end(process):
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def ray_settings(temp, running):
    """The prometheus.yml that Ray itself writes, which README starts Prometheus with, scraping each second."""
    path = temp / "session_latest" / "metrics" / "prometheus" / "prometheus.yml"
    # Ray writes the list of its nodes' addresses a little later; Prometheus looks at it again and again.
    while not path.exists() or not (found := yaml.safe_load(path.read_text())):
        assert running.poll() is None, "the run ended before Ray had written its prometheus.yml"
        time.sleep(0.2)
    assert found["global"]["scrape_interval"] == "10s"
    found["global"] |= {"scrape_interval": "1s", "scrape_timeout": "1s"}
    (scrape,) = found["scrape_configs"]
    for listed in scrape["file_sd_configs"]:
        (path,) = map(Path, listed["files"])
        assert path.resolve() == (temp / "prom_metrics_service_discovery.json").resolve()
        listed["refresh_interval"] = "1s"
    return found


@pytest.fixture(scope="module")
def scraped(tmp_path_factory):
    """(address of a Prometheus, first and last second) after it has watched one run of the debug recipe."""
    folder = tmp_path_factory.mktemp("prometheus")
    temp = Path(tempfile.mkdtemp(prefix="rd", dir="/tmp"))
    (folder / "prices.toml").write_text("[nodes]\ndefault = 3600\n")  # one unit a second
    environment = os.environ | {
        "RAYDR_RAY_TEMP": str(temp),
        "RAY_metrics_report_interval_ms": "1000",
        "RAYDR_PRICES": str(folder / "prices.toml"),
    }
    run = [sys.executable, "-m", "raydr", "run", "--recipe", "debug", "--out", str(folder / "out")]
    # Slow enough for a second's scrapes to see a rate.
    run += ["--finetune.steps", "12", "--synthesize.count", "24", "--sweep.num-seeds", "3"]
    started, server = time.time(), None
    with (folder / "said").open("w") as said:
        running = subprocess.Popen(run, env=environment, stdout=said, stderr=said, start_new_session=True)
    try:
        port = free_port()
        settings = ray_settings(temp, running)
        (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
        command = [PROMETHEUS, "--config.file", folder / "prometheus.yml", "--storage.tsdb.path", folder / "data"]
        with (folder / "log").open("w") as log:
            server = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
        assert running.wait() == 0, (folder / "said").read_text()
        yield f"http://127.0.0.1:{port}", started, time.time()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        if server is not None:
            end(server)
        shutil.rmtree(temp, ignore_errors=True)


def ask(scraped, expression):
    """{tags: values} over the run, numbers only."""
    address, first, last = scraped
    query = urllib.parse.urlencode({"query": expression, "start": first, "end": last, "step": 1})
    with urllib.request.urlopen(f"{address}/api/v1/query_range?{query}", timeout=60) as answer:
        found = json.load(answer)
    assert found["status"] == "success", found
    series = {}
    for each in found["data"]["result"]:
        values = [float(value) for _, value in each["values"] if math.isfinite(float(value))]
        if values:
            series[frozenset(each["metric"].items())] = values
    return series


def queries():
    for path in sorted(BOARDS.glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", []):
                yield pytest.param(target["expr"], id=f"{path.stem}: {panel['title']} {target['refId']}")


@pytest.mark.parametrize("expression", queries())
def test_every_query_finds_something(scraped, expression):
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    assert ask(scraped, expression), expression


def test_counts_are_the_runs_own(scraped):
    made = ask(scraped, "sum by (kind, grade) (ray_raydr_images_total)")
    assert {tags: max(values) for tags, values in made.items()} == {
        frozenset({("kind", kind), ("grade", grade)}): 24.0 for kind in ("plain", "ecc") for grade in ("1", "3")
    }
    (observed,) = ask(scraped, "sum(ray_raydr_score_count)").values()
    assert max(observed) == 4 * 24
    # 6 arms x 3 seeds and a map of one cell; the session ends with the run, and its last second with it.
    (trials,) = ask(scraped, "sum(ray_raydr_trials)").values()
    assert set(trials) == {19.0}
    finished = ask(scraped, 'max(ray_raydr_trials{state="TERMINATED"})')
    (ended,) = ask(scraped, 'sum(ray_raydr_trials_ended_total{outcome="finished"})').values()
    for values in (*finished.values(), ended):
        assert values == sorted(values)
        assert 10 <= values[-1] <= 19


def test_cost_is_seconds_times_price(scraped):
    cost = ask(scraped, "max by (stage) (ray_raydr_cost_total)")
    seconds = ask(scraped, "max by (stage) (ray_raydr_stage_seconds)")
    assert set(cost) == set(seconds)
    for stage, values in cost.items():  # samples are 2 s apart, and sent every second
        assert max(values) == pytest.approx(max(seconds[stage]), abs=5)
