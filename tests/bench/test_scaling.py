"""The simulation: a sleeping maker's rows, trees written by the sink's own commit, growth of memory."""

import time

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
