"""The simulation: a sleeping maker's rows, trees written by the sink's own commit, growth of memory."""

import os
import time

import pytest

from raydr import schema, shards
from raydr.bench import memory, scaling
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


def test_a_tree_is_planned_verified_and_selected(tmp_path):
    found = scaling.against_rows(tmp_path, (64, 192))
    assert [row["rows"] for row in found] == [64, 192]
    table = shards.read(Run(str(tmp_path / "tree")), "synthetic", schema.SYNTHETIC, ["score", "index"])
    assert table["index"].to_pylist() == list(range(192))
    inside = [0.7 <= score <= 0.9 for score in table["score"].to_pylist()]
    assert found[1]["selected"] == sum(inside) > 0
    assert all(row[name] > 0 for row in found for name in ("plan_seconds", "verify_seconds", "select_seconds"))


def test_growth_is_bytes_a_row_after_the_warm_up():
    me, worker, idle = os.getpid(), -1, -2
    record = Recording(started=0.0)
    # 10 rows a second; the driver stays at 100 MB after a jump, the worker grows by 1,000 bytes a row.
    record.resident = [
        (float(t), {me: 100_000_000 if t else 50_000_000, worker: 200_000_000 + 10_000 * t, idle: 90_000_000})
        for t in range(0, 101, 5)
    ]
    found = memory.growth(record, [(0.0, 0.0), (1000.0, 100.0)], me)
    assert found["driver"]["bytes_a_row"] == pytest.approx(0.0)
    assert found["worker"]["bytes_a_row"] == pytest.approx(1000.0)
    assert found["worker"]["curve"][-1] == (1000.0, 201_000_000.0)
