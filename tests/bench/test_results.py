"""What a benchmark says: pairs from recorded runs, Markdown, JSON and comparisons with an earlier file."""

import json
import math

import pytest

from raydr.bench import results
from raydr.bench.fits import Line
from raydr.bench.meter import Recording
from raydr.errors import UserError

MACHINE = {"cpu": "a CPU", "cpus": 2, "torch": "2", "ray": "2.60", "revision": "abc", "repeats": 3}


def arm(each, cpu_each, start=1.0, peak=2**30, others=0.5, load=2.0):
    return results.Measured(Line(start, each), Line(0.0, cpu_each), 10.0, peak, others, load)


def one_pair(name="ingest", scale=1.0, **options):
    pipeline = [arm(0.2 * scale, 0.4, start=12.0, peak=3 * 2**30), arm(0.25 * scale, 0.4, start=14.0), arm(0.1, 0.5)]
    bare = [arm(0.19, 0.38), arm(0.2, 0.4), arm(0.11, 0.4)]
    return results.pair(name, "images", pipeline, bare, **options)


def test_points_and_cpu_samples_become_two_lines():
    recording = Recording(started=1000.0, seconds=30.0, peak_bytes=5, others=0.1, load=3.0)
    recording.cpu = [(1000.0, 0.0), (1010.0, 4.0), (1030.0, 44.0)]
    # 100 images after 10 s, 200 after 15 s, 300 after 20 s: 5 s start-up, .05 s an image.
    found = results.measured(recording, [(100, 10.0), (200, 15.0), (300, 20.0)])
    assert (found.seconds.start, found.seconds.each) == pytest.approx((5.0, 0.05))
    # CPU at those moments: 4, 14, 24 seconds.
    assert (found.cpu.start, found.cpu.each) == pytest.approx((-6.0, 0.1))
    assert (found.peak_bytes, found.total_seconds, found.load) == (5, 30.0, 3.0)


def test_a_pair_by_hand():
    pair = one_pair(flops=3e9, peak_flops=60e9, bar=0.9)
    assert pair.ratios == pytest.approx((0.95, 0.8, 1.1))
    assert (pair.efficiency, *pair.spread) == pytest.approx((0.95, 0.8, 1.1))
    assert (pair.pipeline, pair.bare) == pytest.approx((5.0, 1 / 0.19))
    assert (pair.cpu_efficiency, *pair.cpu_spread) == pytest.approx((0.95, 0.8, 1.0))
    assert pair.cpu_seconds == pytest.approx({"pipeline": 0.4, "bare": 0.4})
    assert pair.startup_seconds == pytest.approx({"pipeline": 12.0, "bare": 1.0})
    assert pair.peak_bytes == {"pipeline": 3 * 2**30, "bare": 2**30}
    assert pair.mfu == pytest.approx(3e9 * 5 / 60e9)
    assert (pair.load, pair.others) == (2.0, 0.5)


def test_json_keeps_every_ratio_and_has_no_nan(tmp_path):
    result = results.Result(MACHINE, [one_pair(bar=0.9)])
    result.peers.append(results.Peer("stock", "synthesize", "images", 2.0, 5.0, (2.4, 2.5, 2.7)))
    result.add("nothing", math.nan, "s")
    path = tmp_path / "result.json"
    path.write_text(results.to_json(result))
    record = results.load(str(path))
    pair = record["pairs"][0]
    assert {"pipeline", "bare", "efficiency", "spread"} <= set(pair)
    assert pair["ratios"] == pytest.approx([0.95, 0.8, 1.1])
    assert record["peers"][0]["speedup"] == 2.5
    assert record["values"]["nothing"]["value"] is None
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))


def test_against_an_earlier_file(tmp_path):
    before = json.loads(results.to_json(results.Result(MACHINE, [one_pair(), one_pair("sweep"), one_pair("gone")])))
    after = results.Result(MACHINE, [one_pair(), one_pair("new")])
    slower = [arm(each, 0.4) for each in (0.4, 0.5, 0.3)]
    after.pairs.append(results.pair("sweep", "trials", slower, [arm(0.2, 0.4), arm(0.2, 0.4), arm(0.15, 0.4)]))
    lines = results.compare(before, after)
    assert len(lines) == 2
    assert lines[0].startswith("ingest: efficiency 0.950 [0.800, 1.100] -> 0.950")
    assert lines[0].endswith("within noise")
    assert lines[1].endswith("-> 0.500 [0.400, 0.500], down")


def test_single_figures_and_curves_are_compared_too():
    def result(start, rate, rows=(1000,)):
        found = results.Result(MACHINE)
        found.add("start of Ray", start, "s")
        found.add("unmeasured", math.nan, "s")
        found.scaling["actors"] = [{"actors": 2, "images_per_second": rate, "efficiency": 0.9}]
        found.scaling["tree"] = [{"rows": size, "verify_seconds": 5.0} for size in rows]
        return found

    before = json.loads(results.to_json(result(10.0, 60.0)))
    lines = results.compare(before, result(15.0, 30.0, rows=(1000, 2000)))
    assert lines[0] == "start of Ray, s: 10 -> 15 (+50%), measured once each: noise unknown"
    assert lines[1] == "actors at 2: images_per_second: 60 -> 30 (-50%), measured once each: noise unknown"
    assert lines[2:] == ["2 single figures within 20%"]  # efficiency, and what verifying 1000 rows takes


@pytest.mark.parametrize("content", [None, "no json", "[]", '{"format": 99}'])
def test_against_something_else_is_refused(content, tmp_path):
    path = tmp_path / "other.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match="--against"):
        results.load(str(path))


def test_markdown_shows_each_pair_once_with_its_bar():
    result = results.Result(MACHINE, [one_pair(bar=0.9, note="of small ones"), one_pair("sweep")])
    result.peers.append(results.Peer("stock", "synthesize", "images", 2.0, 5.0, (2.4, 2.5, 2.7), "as written"))
    result.add("start", 12.345, "s", "of Ray")
    text = results.markdown(result)
    rows = [line for line in text.splitlines() if line.startswith("| ingest")]
    assert len(rows) == 1
    assert "0.950 [0.800, 1.100] | 0.90 |" in rows[0]
    assert "3.00 / 1.00" in rows[0]
    assert "| synthesize: stock | 2 images/s | 5 images/s | 2.50 [2.40, 2.70] | as written |" in text
    assert "| start | 12.35 s | of Ray |" in text
    assert "- ingest: of small ones" in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("| ingest") or line.startswith("|---")}
    assert rows[0].count("|") in widths


def test_markdown_shows_curves_with_one_column_a_size():
    result = results.Result(MACHINE)
    result.scaling["tree"] = [{"rows": 64_000, "plan_seconds": 0.25}, {"rows": 10_000_000, "plan_seconds": 31.5}]
    text = results.markdown(result)
    assert "\n\n\n" not in text
    assert "| rows | 64,000 | 10,000,000 |\n|---|---|---|\n| plan_seconds | 0.25 | 31.5 |" in text
