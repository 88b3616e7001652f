"""The page and results.json: complete, self-contained, escaped, and honest about what is missing."""

import json
import re
from html.parser import HTMLParser

import fake_run
import numpy as np
import pytest

from raydr import schema, shards
from raydr.errors import MissingInput
from raydr.report import answer, figures, page, svg, tables
from raydr.storage import Run

VOID = {"meta", "img", "input", "br", "link", "hr"}


class Outline(HTMLParser):
    """Checks nesting; collects ids, references, headings' texts and every address."""

    def __init__(self, html):
        super().__init__()
        self.stack, self.ids, self.references, self.addresses, self.text = [], [], [], [], []
        self.feed(html)
        assert not self.stack, self.stack

    def handle_starttag(self, name, attributes):
        values = dict(attributes)
        if name not in VOID:
            self.stack.append(name)
        self.ids += [values["id"]] if "id" in values else []
        for key in ("aria-labelledby", "for"):
            self.references += values.get(key, "").split()
        if values.get("href", "").startswith("#"):
            self.references.append(values["href"][1:])
        self.addresses += [values[key] for key in ("src", "href", "action", "srcset", "poster") if key in values]

    def handle_endtag(self, name):
        assert self.stack, name
        assert self.stack.pop() == name, (name, self.getpos())

    def handle_data(self, text):
        if "script" not in self.stack and "style" not in self.stack:
            self.text.append(text)


def visible(html):
    return re.sub(r"\s+", " ", " ".join(Outline(html).text)).replace("\u00a0", " ")


def test_a_cell_of_the_map_says_where_its_band_ran_out(rendered):
    html, _ = rendered
    assert html.count("30 of 50</span></td>") == 6


def test_page_is_well_formed_and_self_contained(rendered):
    outline = Outline(rendered[0])
    assert len(outline.ids) == len(set(outline.ids))
    assert set(outline.references) <= set(outline.ids)
    assert all(address.startswith(("data:image/jpeg;base64,", "#")) for address in outline.addresses)
    assert "://" not in rendered[0]
    assert "default-src 'none'" in rendered[0]
    assert len(rendered[0]) < 15e6


def test_every_section_is_there(rendered):
    outline = Outline(rendered[0])
    for section in ("answer", "arms", "contrasts", "grades", "map", "samples", "training", "trust", "reproduce"):
        assert section in outline.ids
    shown = visible(rendered[0])
    assert "Phantom data." in shown
    # Nothing is missing; the one such box speaks to browsers without JavaScript.
    assert rendered[0].count('class="missing"') == 1


def test_numbers_on_the_page_are_those_of_results(rendered):
    html, results = rendered
    shown = visible(html)
    for row in results["table"]:
        assert f"{100 * row['metrics']['balanced_accuracy']['mean']:.1f}" in shown
        assert all(f"{100 * value['mean']:.1f}" in shown for value in (*row["recall"], *row["precision"]))
    for row in results["contrasts"]:
        between = f"{figures.signed(row['low'])} to {figures.signed(row['high'])}"
        assert between in shown
    for sentence in results["answer"]["sentences"]:
        assert re.sub(r"\W", "", sentence) in re.sub(r"\W", "", shown)


def test_results_hold_what_the_trials_hold(single, rendered):
    results = rendered[1]
    stored = shards.read(single[0], "trials/results", schema.TRIALS).to_pylist()
    arms = [row for row in stored if row["purpose"] == "arm"]
    assert sum(len(trials) for trials in results["arms"].values()) == len(arms) == 18
    for row in arms:
        found = results["arms"][row["arm"]][row["trial_id"]]
        assert found["balanced_accuracy"] == pytest.approx(row["balanced_accuracy"], abs=1e-6)
        assert found["balanced_accuracy"] == pytest.approx(np.mean(found["recall"]))
    assert set(results["acceptance"]) == {"plain-g1-0", "plain-g3-0", "ecc-g1-0", "ecc-g3-0"}
    row = results["acceptance"]["plain-g1-0"]["1"]
    assert row["seconds_per_accepted"] == pytest.approx(30 / row["accepted"])
    assert results["stages"]["sweep"] == {"seconds": 141.7, "peak_bytes": int(2.5e9)}
    assert list(results["stages"]) == ["ingest", "ensemble", "finetune", "synthesize", "sweep"]
    assert results["revision"] == "0123456789abcdef"
    assert results["audit"] == []
    assert not results["partial"]
    json.dumps(results, allow_nan=False)


def test_write_puts_both_files_into_the_run(single):
    run, recipe = single
    where = page.write(run, recipe)
    assert where == str(run.path("report/index.html"))
    html, results = page.render(run, recipe)
    assert run.read("report/index.html").decode() == html
    assert run.read_json("report/results.json") == json.loads(json.dumps(results))
    # Without a recipe the run's own is taken.
    assert page.write(run) == where


def test_the_same_run_gives_the_same_page(single, rendered):
    assert page.render(*single)[0] == rendered[0]


def test_hostile_names_are_escaped(tmp_path):
    run = fake_run.write_run(tmp_path, num_seeds=1, num_test=4, num_samples=4)
    recipe = fake_run.recipe() | {"name": "</script><script>alert(1)</script>"}
    run.replace_json("logs/stages.json", {"<b>x": {"seconds": 1, "peak_bytes": 1}})
    html, _ = page.render(run, recipe)
    assert "<script>alert" not in html
    assert "<b>x" not in html
    Outline(html)


def test_an_empty_run_says_which_commands_fill_it(tmp_path):
    run = Run(str(tmp_path / "out"))
    html, results = page.render(run, fake_run.recipe())
    shown = visible(html)
    for stage in ("ingest", "finetune", "synthesize", "sweep"):
        assert f"raydr {stage} --out out" in shown
    assert results["table"] == []
    assert results["answer"]["sentences"] == []
    assert "arms" not in Outline(html).ids
    with pytest.raises(MissingInput):
        page.write(run)


def test_samples_without_trials_and_trials_without_samples(tmp_path):
    made = fake_run.write_run(tmp_path / "a", with_trials=False, num_samples=8)
    html, results = page.render(made, fake_run.recipe())
    assert "raydr sweep --out a" in visible(html)
    assert len(results["scores"]["groups"]) == 4
    Outline(html)
    swept = fake_run.write_run(tmp_path / "b", with_synthetic=False, num_test=4)
    html, results = page.render(swept, fake_run.recipe())
    assert "raydr synthesize --out b" in visible(html)
    assert len(results["table"]) == 6
    Outline(html)


def test_an_unfinished_sweep_is_called_so(single):
    run, recipe = single
    asked = recipe | {"sweep": recipe["sweep"] | {"num_seeds": 9}}
    html, results = page.render(run, asked)
    assert results["partial"]
    assert "not finished" in visible(html)


def test_trials_of_earlier_plans_are_counted_not_shown(tmp_path):
    run = fake_run.write_run(tmp_path, num_seeds=2, num_test=4, num_samples=4)
    ids = shards.read(run, "trials/results", schema.TRIALS)["trial_id"].to_pylist()
    earlier = [trial_id for trial_id in ids if trial_id.startswith("band-arm") and trial_id.endswith("-1-0")]
    assert len(earlier) == 1
    run.replace_json("trials/plan.json", {"trial_ids": sorted(set(ids) - set(earlier))})
    html, results = page.render(run, fake_run.recipe(num_seeds=2))
    assert len(results["arms"]["band"]) == 1
    assert not results["partial"]
    assert results["audit"] == [
        "Trials of earlier plans, stored and not shown: 1 (earlier looks at these photographs)."
    ]
    assert "earlier looks" in visible(html)
    run.replace_json("trials/plan.json", {"trial_ids": [*ids, "still-to-come"]})
    assert page.render(run, fake_run.recipe(num_seeds=2))[1]["partial"]


def test_three_replicates(triple):
    run, recipe = triple
    run.replace_json("logs/stages.json", {"report": {"seconds": 2.5, "peak_bytes": 7}})
    html, results = page.render(run, recipe)
    assert results["stages"]["sweep"]["seconds"] == pytest.approx(3 * 141.7)
    assert results["stages"]["report"] == {"seconds": 2.5, "peak_bytes": 7}
    assert not results["partial"]
    assert results["num_replicates"] == 3
    assert not results["shared_test_images"]
    assert results["contrasts"][0]["conditional_on"] is None
    assert not any("onditional on" in caveat for caveat in results["answer"]["caveats"])
    assert "run/replicate-2" in html
    Outline(html)


def test_forged_results_are_reported(tmp_path):
    run = fake_run.write_run(tmp_path, num_seeds=2, num_test=8, num_samples=4)
    for row in run.list("trials/results"):
        if "naive-arm" in row[0]:
            run.delete(row[0])
            run.delete(shards.record_key(row[0]))
    table = shards.read(run, "trials/results", schema.TRIALS)
    rows = [dict(row) for row in table.to_pylist() if row["arm"] == "band" and row["purpose"] == "arm"]
    forged = rows[0] | {"trial_id": "naive-arm-None-None-1_0-0-0", "arm": "naive", "balanced_accuracy": 0.999}
    import pyarrow as pa

    forged_table = pa.Table.from_pylist([forged], schema.TRIALS)
    shards.commit(run, "trials/results/forged.parquet", forged_table, schema.TRIALS, "f")
    html, results = page.render(run, fake_run.recipe(num_seeds=2))
    assert any("0.9990" in finding for finding in results["audit"])
    assert "0.9990" in visible(html)


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("better", "raise balanced accuracy from 60.0 % with oversampling to 65.0 %: +5.0 points"),
        ("worse", "lower balanced accuracy from 60.0 % with oversampling to 65.0 %"),
        ("not shown", "no difference from oversampling is shown (+5.0 points of balanced accuracy, 95 % interval"),
    ],
)
def test_sentences(verdict, words):
    row = {"a": "band", "b": "oversampling", "difference": 0.05, "low": -0.01, "high": 0.11, "verdict": verdict}
    said = answer.sentence(row, {"band": 0.65, "oversampling": 0.6}, 0.95).replace("\u00a0", " ")
    assert words in said
    assert "−1.0 to +11.0" in said


def test_plain_json_values():
    value = {"a": np.float32(0.5), 3: (np.int64(2), float("nan")), "c": np.array([[1.0, np.inf]])}
    assert tables.plain(value) == {"a": 0.5, "3": [2, None], "c": [[1.0, None]]}


@pytest.mark.parametrize(
    ("seconds", "said"), [(8.14, "8.1 s"), (139, "2 min 19 s"), (11100, "3 h 05 min"), (None, "—")]
)
def test_durations(seconds, said):
    assert page.duration(seconds) == said


def test_curves_are_thinned_by_block_means():
    points = [[step, float(step % 2)] for step in range(1, 101)]
    thinned = page._block_means(points, most=10)
    assert len(thinned) == 10
    assert thinned[0] == [10, 0.5]
    assert page._block_means([[1, 2.0]]) == [[1, 2.0]]


def test_svg_escapes_and_scales():
    assert str(svg.text("a<b", class_="x")) == '<text class="x">a&lt;b</text>'
    assert str(svg.tag("line", x1=1.234567, data_band='"')) == '<line x1="1.23" data-band="&quot;"></line>'
    scale = svg.Scale(0, 2, margin=0)
    assert scale.x(0.5) == "25.00%"
    assert scale.ticks(6) == [0, 0.5, 1, 1.5, 2]
    assert svg.Scale(0.672, 0.931).ticks(6) == [0.7, 0.75, 0.8, 0.85, 0.9]


def test_histogram_bars_count_every_usable_score(rendered):
    results = rendered[1]
    group = results["scores"]["groups"][0]
    drawn = str(figures.histogram(group, results["scores"]["stops"], [0.7, 0.9], "k"))
    most = int(re.search(r'class="tick">(\d+) images<', drawn)[1])
    heights = [float(h) for h in re.findall(r'<rect x="[\d.]+%" y="[\d.]+" width="[\d.]+%" height="([\d.]+)"', drawn)]
    # Bars are drawn twice, plain and inside the band; heights are counts times 92 px over the largest.
    assert sum(heights) / 2 * most / 92 == pytest.approx(group["at_or_below"][-1], rel=1e-3)
