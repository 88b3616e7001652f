"""The rig without Ray: order of the arms, bare loops as processes, and what it keeps."""

import json

import pytest

from raydr import recipes
from raydr.bench import peers, results, rig, workload
from raydr.bench.fits import Line
from raydr.config import Recipe
from raydr.record import restore
from raydr.shapes import Shape


def make_rig(tmp_path, repeats=3):
    sizes = workload.Sizes(repeats=repeats)
    return rig.Rig(tmp_path, Shape(), sizes, results.Result({"repeats": repeats}))


def test_pairs_run_abba_and_are_kept(tmp_path, capsys):
    order, bench = [], make_rig(tmp_path)

    def arm(name, each):
        def run(number):
            order.append(name)
            return results.Measured(Line(0, each * (1 + number)), Line(0, each), 1, 0, 0, 0)

        return run

    pair = bench.pair("x", "images", arm("pipeline", 0.2), arm("bare", 0.18), bar=0.9)
    assert order == ["pipeline", "bare", "bare", "pipeline", "pipeline", "bare"]
    assert pair.ratios == pytest.approx((0.9, 0.9, 0.9))
    assert bench.result.pairs == [pair]
    assert "efficiency 0.900" in capsys.readouterr().out


def test_a_broken_loop_says_how_it_ended():
    with pytest.raises(RuntimeError, match=r"(?s)bare loop nothing ended with 1.*KeyError: 'nothing'"):
        rig.run_loops("nothing", ({"url": "/nowhere"},))


def test_a_loop_is_measured_as_a_process_of_its_own(tmp_path):
    bench = make_rig(tmp_path)
    target = bench.fresh("phantoms")
    arguments = {"url": target.url, "num_shards": 3, "processes": 1, "px": 32}
    found = bench.bare("phantoms", workload.commits(target, "real"), arguments)
    assert 0 < found.seconds.each < 1
    assert found.total_seconds > found.seconds.start > 0
    assert found.peak_bytes > 10e6
    assert bench.fresh("phantoms").list() == []


def test_recipes_travel_as_json():
    for name in recipes.RECIPES:
        recipe = recipes.named(name)
        assert restore(Recipe, json.loads(json.dumps(rig.plain(recipe)))) == recipe


def test_the_published_filter_looks_at_the_best_only():
    import numpy as np

    scores = np.array([0.99, 0.9, 0.2, 0.6, 0.94, 0.55])
    # The best four are .99, .94, .9, .6; .99 lies above the band.
    assert peers.kept(scores, 4, (0.5, 0.95)).tolist() == [4, 1, 3]
    assert peers.kept(scores, 6, (0.5, 0.95)).tolist() == [4, 1, 3, 5]
