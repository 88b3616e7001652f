"""Scaling curves as SVG: what is drawn is what was measured."""

from xml.etree import ElementTree

import pytest

from raydr.bench import plots

SCALING = {
    "actors": [
        {"actors": 1, "images_per_second": 30.0, "efficiency": 1.0},
        {"actors": 4, "images_per_second": 60.0, "efficiency": 0.5},
    ],
    "plan": [
        {"planned_rows": 10_000, "driver_rss_bytes": 300 * 2**20},
        {"planned_rows": 1_000_000, "driver_rss_bytes": 450 * 2**20},
    ],
    "memory": {who: {"curve": [(0.0, 1e8), (1000.0, 2e8), (2000.0, 2e8)]} for who in ("driver", "worker")},
}


def test_each_curve_has_a_picture_that_parses():
    found = plots.figures(SCALING)
    assert set(found) == {"actors", "plan", "memory"}
    for picture in found.values():
        assert ElementTree.fromstring(picture).tag.endswith("svg")
    assert plots.figures({}) == {}


def test_twice_the_rate_is_half_way_to_four_times_on_a_logarithmic_axis():
    root = ElementTree.fromstring(plots.figures(SCALING)["actors"])
    lines = [line.get("points") for line in root.iter("{http://www.w3.org/2000/svg}polyline")]
    measured, perfect = ([tuple(map(float, point.split(","))) for point in line.split()] for line in lines)
    # 30 -> 60 measured, 30 -> 120 perfect: half of the height.
    assert measured[0] == perfect[0]
    assert measured[0][1] - measured[1][1] == pytest.approx((perfect[0][1] - perfect[1][1]) / 2, abs=0.1)


@pytest.mark.parametrize(
    ("value", "shown"), [(0.25, "0.25"), (12.34, "12.3"), (1200, "1200"), (12_800, "12.8k"), (10_000_000, "10M")]
)
def test_short_numbers(value, shown):
    assert plots.short(value) == shown
