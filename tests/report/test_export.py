"""Figures and tables for papers: flattening by hand, valid files, and the page's own numbers."""

import csv
import io
import re
import zlib
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from raydr.grades import NAMES
from raydr.report import export, export_tables, files, palette, svg
from raydr.report.drawing import Drawing, Shape, flatten


def test_flatten_resolves_percentages_classes_and_clips():
    mark = svg.tag("line", x1="0", x2="50%", y1=10, y2=10, class_="baseline")
    bar = svg.tag("rect", x="40%", y=0, width="40%", height=20)
    clip = svg.tag("clipPath", svg.tag("rect", x="50%", y=0, width="10%", height=99), id="c")
    dot = svg.tag("circle", cx="100%", cy=5, r=3, class_="arm", style="fill:var(--arm-band)")
    words = svg.text("a b", x="100%", y=9, class_="name halo", text_anchor="end")
    inside = svg.tag("g", bar, class_="bars inside", clip_path="url(#c)")
    drawing = flatten(svg.figure([mark, clip, inside, dot, words], 40, "x"), width=220, margin=10)
    line, polygon, circle, text = drawing.shapes
    assert (drawing.width, drawing.height) == (220, 60)
    assert line.points == ((10, 20), (110, 20))
    assert (line.stroke, line.stroke_width, line.dashes) == (palette.COLOURS["arm-oversampling"][0], 1.5, (4, 4))
    # 40-80 % of 200 px is x 90-170; the clip keeps 110-130.
    assert polygon.points == ((110, 10), (130, 10), (130, 30), (110, 30))
    assert (polygon.fill, polygon.opacity) == (palette.COLOURS["accent"][0], 1)
    assert circle.points == ((210, 15),)
    assert (circle.fill, circle.stroke) == (palette.COLOURS["arm-band"][0], palette.COLOURS["surface"][0])
    assert (text.text, text.anchor, text.bold, text.stroke) == ("a b", "end", True, None)


def test_flatten_places_nested_boxes():
    line = svg.tag("polyline", points="0,0 100,100", class_="curve", style="stroke:#123456")
    inner = svg.tag("svg", line, x=0, y=18, width="100%", height=50, viewBox="0 0 100 100", preserveAspectRatio="none")
    (shape,) = flatten(svg.figure([inner], 80, "x"), width=120, margin=10).shapes
    assert shape.points == ((10, 28), (110, 78))
    assert shape.stroke == "#123456"


SQUARE = Drawing(
    40,
    30,
    (
        Shape("polygon", ((5, 5), (25, 5), (25, 25), (5, 25)), "#ff0000", opacity=0.5),
        Shape("circle", ((32, 15),), "#0000ff", size=4),
        Shape("line", ((0, 28), (40, 28)), stroke="#00ff00", stroke_width=2, dashes=(10, 10)),
        Shape("text", ((5, 12),), "#000000", size=8, text="−1 (50 %) & \\", anchor="start"),
    ),
)


def test_png_pixels():
    image = Image.open(io.BytesIO(files.png(SQUARE)))
    assert image.size == (120, 90)
    pixels = np.asarray(image).astype(int)
    assert pixels[60, 66].tolist() == pytest.approx([255, 127, 127], abs=2)  # half red on white
    assert pixels[45, 96].tolist() == [0, 0, 255]
    assert pixels[84, 15].tolist() == [0, 255, 0]
    assert pixels[84, 45].tolist() == [255, 255, 255]  # the gap of the dashes
    assert pixels[10:40, 15:75].min() < 60  # the text


def test_pdf_is_well_formed():
    data = files.pdf(SQUARE)
    start = int(re.search(rb"startxref\n(\d+)", data)[1])
    assert data[start:].startswith(b"xref")
    offsets = [int(offset) for offset in re.findall(rb"(\d{10}) 00000 n ", data)]
    assert all(data[offset:].startswith(b"%d 0 obj" % number) for number, offset in enumerate(offsets, 1))
    assert b"/MediaBox[0 0 30.00 22.50]" in data
    stream = re.search(rb"/FlateDecode/Length (\d+)>>\nstream\n", data)
    content = zlib.decompress(data[stream.end() : stream.end() + int(stream[1])]).decode("cp1252")
    assert r"(–1 \(50 %\) & \\) Tj" in content
    assert "1.000 0.000 0.000 rg 5.00 5.00 m 25.00 5.00 l" in content
    assert "[10 10] 0 d" in content
    assert b"/O0<</ca 0.5/CA 0.5>>" in data


def test_pdf_aligns_text_by_helvetica():
    # "100" is three digits of 556/1000: at 10 px 16.68 px wide.
    assert len(files.HELVETICA) == 95
    for anchor, x in (("start", 50.0), ("middle", 50 - 8.34), ("end", 50 - 16.68)):
        shape = Shape("text", ((50, 9),), "#000000", size=10, text="100", anchor=anchor)
        assert f"1 0 0 -1 {x:.2f} 9.00 Tm" in files._pdf_shape(shape, [])


def test_svg_is_standalone():
    root = ElementTree.fromstring(files.svg(SQUARE))
    assert root.get("viewBox") == "0 0 40 30"
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts == ["−1 (50 %) & \\"]
    assert b"var(" not in files.svg(SQUARE)


@pytest.fixture(scope="module")
def exported(single, tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    return folder, export.write(single[0], folder / "made", single[1])


def test_every_figure_in_three_formats(exported):
    _, written = exported
    names = {path.stem for path in written if path.suffix == ".svg"}
    assert {"levels", "recalls", "contrasts", "samples", "map-band", "verdicts-ecc", "scores-plain-1"} <= names
    assert {f"confusion-{arm}" for arm in ("real_only", "oversampling", "naive", "band", "ecc", "ceiling")} <= names
    for path in written:
        data = path.read_bytes()
        assert data.startswith({".svg": b"<?xml", ".pdf": b"%PDF", ".png": b"\x89PNG"}.get(path.suffix, b""))
        if path.suffix == ".svg":
            assert b"phantom data" in data
            ElementTree.fromstring(data)
        if path.suffix == ".png":
            Image.open(io.BytesIO(data)).verify()
    assert {path.suffix for path in written if path.stem == "levels"} == {".svg", ".pdf", ".png"}


def test_tables_hold_the_pages_numbers(exported, rendered):
    folder, _ = exported
    with open(folder / "made" / "contrasts.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, shown in zip(rows, rendered[1]["contrasts"], strict=True):
        assert (row["a"], row["b"], row["verdict"]) == (shown["a"], shown["b"], shown["verdict"])
        assert float(row["difference"]) == pytest.approx(shown["difference"], abs=5e-5)
    with open(folder / "made" / "metrics.csv", newline="") as file:
        metrics = {row["arm"]: row for row in csv.DictReader(file)}
    for row in rendered[1]["table"]:
        found = float(metrics[row["name"]]["balanced_accuracy mean"])
        assert found == pytest.approx(row["metrics"]["balanced_accuracy"]["mean"], abs=5e-5)


def test_every_table_of_the_page_is_exported(exported, rendered):
    """Those that this run has no rows for, from rows as the other commands leave them."""
    folder, written = exported
    names = {path.stem for path in written if path.suffix == ".csv"}
    assert {"metrics", "arms", "contrasts", "acceptance", "photographs", "members", "gap_closed"} <= names
    assert names == {path.stem for path in written if path.suffix == ".tex"}
    with open(folder / "made" / "members.csv", newline="") as file:
        members = list(csv.DictReader(file))
    assert [row["name"] for row in members] == [row["name"] for row in rendered[1]["members"]]
    assert members[0]["validation balanced_accuracy"] == "0.8000"

    level = {"mean": 0.612345, "std": None}
    scored = {"ensemble_id": "e2", "generator_id": "plain-g1-0", "grade": 1, "num_images": 60, "own_share": 0.5}
    more = {
        "strata": [{"arm": "band", "stratum": "camera A", "num_images": 70, "balanced_accuracy": level}],
        "probes": [{"probe": "probe", "told": "plain images", "num_held_out": 40, "balanced_accuracy": level}],
        "rescored": [scored],
        "quality": {"plain-g1-0": {"3": {"num_images": 9, "kid": 0.01, "in_band": {"kid": None}, "reference": {}}}},
        "external": {"IDRiD": {"band": {"num_images": 103, "accuracy": level, "over_baseline": {"low": -0.01}}}},
    }
    found = dict(export_tables.table_rows(rendered[1] | more))
    assert found["strata"][1] == ["band", "camera A", "70", "0.6123"]
    assert found["probes"][0][-1] == "balanced_accuracy mean"
    assert dict(zip(*found["rescored"], strict=True)) == {
        "ensemble_id": "e2", "generator_id": "plain-g1-0", "grade": "mild", "num_images": "60", "own_share": "0.5000",
    }  # fmt: skip
    assert found["quality"] == [["generator", "grade", "num_images", "kid"], ["plain-g1-0", "severe", "9", "0.0100"]]
    assert found["external"] == [
        ["dataset", "arm", "num_images", "accuracy mean", "over oversampling low"],
        ["IDRiD", "band", "103", "0.6123", "-0.0100"],
    ]
    train = next(row for row in rendered[1]["photographs"] if row["split"] == "train")
    (line,) = (row for row in found["photographs"] if row[1] == "train")
    assert line[2:7] == [str(count) for count in train["counts"]]
    assert found["photographs"][0][2:7] == [f"counts {name}" for name in NAMES]


def test_latex_escapes():
    text = export._latex([["arm", "share"], ["real_only", "50 % ± 2"], ["a&b", "−1"]])
    assert r"real\_only & 50 \% $\pm$ 2 \\" in text
    assert r"a\&b & $-$1 \\" in text
    assert text.startswith("\\begin{tabular}{lr}\n\\toprule")


def test_an_empty_run_has_nothing_to_export(tmp_path):
    import fake_run

    from raydr.storage import Run

    assert export.write(Run(str(tmp_path / "run")), tmp_path / "figures", fake_run.recipe()) == []
