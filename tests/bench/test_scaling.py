"""The simulation: a sleeping maker's rows, trees written by the sink's own commit, growth of memory."""

import subprocess
import sys
import time

import pytest

from raydr import schema, shards
from raydr.bench import memory, results, scaling, trees
from raydr.bench.meter import Recording
from raydr.cluster.sink import RAW
from raydr.fundus import plausible
from raydr.storage import Run


def test_a_sleeping_maker_gives_rows_that_the_sink_takes():
    started = time.perf_counter()
    table = scaling.Sleeping(0.2).rows({}, range(64, 128), lambda: None)
    assert time.perf_counter() - started >= 0.2
    assert table["index"].to_pylist() == list(range(64, 128))
    assert set(RAW.names) - set(table.column_names) == {"plan", "seconds"}
    for name in table.column_names:
        assert table.schema.field(name).type == RAW.field(name).type
    pixels = scaling.discs(64, 64)
    assert table["pixels"][5].as_py() == pixels[5].tobytes()
    assert plausible.is_fundus(pixels).all()
    assert not plausible.is_blank(pixels).any()
    assert table.equals(scaling.Sleeping(0).rows({}, range(64, 128), lambda: None))


def test_the_first_shards_wait_until_all_makers_are_there(tmp_path):
    beats = []

    def beat():
        beats.append(len(beats))
        (tmp_path / "another").touch()

    maker = scaling.Sleeping(0, str(tmp_path), 2)
    assert maker.rows({}, range(64), beat).num_rows == 64
    assert len(beats) == 1
    maker.rows({}, range(64), lambda: pytest.fail("it waits once"))


def test_a_tree_is_planned_resumed_verified_selected_and_reported(tmp_path):
    # 192 rows are the sink's own shards, the rest of 1,280 repeats 16 of them under other keys.
    found = list(trees.measure(tmp_path, (192, 1280)))
    assert [row["rows"] for row in found] == [192, 1280]
    target = Run(str(tmp_path / "tree"))
    table = shards.read(target, "synthetic", schema.SYNTHETIC, ["score", "index"])
    assert table.num_rows == 1280
    assert table["index"].to_pylist()[:1024] == list(range(1024))
    inside = [0.7 <= score <= 0.9 for score in table["score"].to_pylist()]
    assert found[1]["selected"] == sum(inside) > 0
    commands = ("plan", "resume", "verify", "select", "status")
    assert all(row[f"{name}_seconds"] > 0 for row in found for name in commands)
    assert len(shards.starts(target, "synthetic")) == 20


READING = """
import sys
import time

import pytest
import psutil
from raydr.bench import trees
from raydr.storage import Run

few, many = (Run(f"{sys.argv[1]}/{name}") for name in ("few", "many"))
trees.grow(few, 0, 50)
trees.grow(many, 0, 1050)
trees.select(few)  # threads and buffers are there now
before = psutil.Process().memory_info().rss
trees.select(many)
print((psutil.Process().memory_info().rss - before) / 1050)
"""


def test_a_reader_does_not_keep_the_footers_of_what_it_has_read(tmp_path):
    # 2 kB a shard are the rows that it returns; kept footers would be 80 kB a shard.
    done = subprocess.run([sys.executable, "-c", READING, str(tmp_path)], capture_output=True, text=True, check=True)
    assert float(done.stdout.split()[-1]) < 40_000


def test_what_one_driver_can_feed_by_hand():
    result = results.Result({})
    # 20 ms a shard beside half a second that every run takes: 64 images / 20 ms, half of it.
    rows = [{"actors": n, "shards": 8 * n, "driver_cpu_seconds": 0.5 + 0.02 * 8 * n} for n in (1, 2, 16)]
    scaling.reach(result, rows)
    values = {name: item["value"] for name, item in result.values.items()}
    assert values["driver's CPU a shard"] == pytest.approx(20.0)
    assert values["images one driver can pass on"] == pytest.approx(1600.0)
    assert values["H100s one driver can feed"] == pytest.approx(1600 / 7)
    assert values["images a day on 8 H100"] == pytest.approx(8 * 7 * 86_400)
    assert "assumes 7 images/s a GPU" in result.values["images a day on 8 H100"]["note"]
    assert "what held to 16 actors holds to 64" in result.values["images a day on 64 H100"]["note"]


def test_a_driver_that_is_too_slow_is_the_limit():
    result = results.Result({})
    scaling.reach(result, [{"actors": n, "shards": n, "driver_cpu_seconds": 0.1 * n} for n in (1, 2)])
    # 320 images/s are 46 GPUs' worth: 64 get no more.
    assert result.values["images a day on 64 H100"]["value"] == pytest.approx(320 * 86_400)


def test_growth_is_the_difference_of_two_peaks_a_row():
    me, worker, other, service = 1, 2, 3, 4
    records = [Recording(started=100.0, workers={worker, other}), Recording(started=200.0, workers={worker, other})]
    records[0].resident = [(101.0, {me: 90, worker: 300, other: 10, service: 999}), (102.0, {me: 100, worker: 200})]
    # The other worker is the larger one now; a service of Ray's is none of them.
    records[1].resident = [(201.0, {me: 400, worker: 300, other: 500, service: 9999}), (203.0, {me: 200, other: 400})]
    found = memory.growth((10, 60), records, me)
    assert found["driver"]["peaks"] == [100, 400]
    assert found["driver"]["bytes_a_row"] == 6
    assert found["worker"]["peaks"] == [300, 500]
    assert found["worker"]["bytes_a_row"] == 4
    assert found["worker"]["curve"] == [(1.0, 500), (3.0, 400)]
