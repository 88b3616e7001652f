"""`raydr report OUT --pictures DIR`: what a README shows of a run.

report.png is the report's first screen, as a browser shows it; synthetic.png has photographs above synthetic images of
the same grade: the first usable ones by index, so chosen by nobody.
"""

import io
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageDraw, ImageFont

from raydr import images, schema, shards
from raydr.errors import MissingInput, UserError
from raydr.grades import NAMES
from raydr.report import page, palette, samples
from raydr.report.data import Part, load
from raydr.storage import Run

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WINDOW = (1280, 1130)  # px: down to the table of contents
# What a picture in a repository may weigh.
MAX_BYTES = 200_000
COLUMNS, CELL, GAP, LEFT, LINE = 8, 84, 4, 118, 20  # px but for the first


def write(run: Run, folder: Path) -> list[Path]:
    """Write both pictures into `folder` (made if need be). MissingInput without a report or without samples."""
    if not run.exists(page.PAGE):
        raise MissingInput(f"There is no report in {run.url}: run `raydr report {run.url}` first")
    recipe = run.read_json("recipe.json")["recipe"]
    parts = [part for part in load(run, recipe["num_replicates"]) if part.samples.num_rows]
    if not parts:
        raise MissingInput(f"{run.url} holds no synthetic image to show: run `raydr synthesize --out {run.url}` first")
    folder.mkdir(parents=True, exist_ok=True)
    made = {
        "report.png": screen(run.read(page.PAGE)),
        "synthetic.png": grid(parts[0], recipe["ingest"]["source"] == "phantom"),
    }
    for name, picture in made.items():
        (folder / name).write_bytes(small_png(picture))
    return [folder / name for name in made]


def screen(html: bytes) -> Image.Image:
    """The first screen of a page. UserError without a Chromium."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        raise UserError(f"A picture of the report takes one of {', '.join(BROWSERS)} on PATH: install it")
    with tempfile.TemporaryDirectory() as folder:
        shown, taken = Path(folder) / "index.html", Path(folder) / "taken.png"
        shown.write_bytes(html)
        command = [browser, "--headless=new", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder}/profile"]
        # Chromium's sandbox refuses root, which is who runs in a container; the page is our own.
        command += ["--no-sandbox"] if os.geteuid() == 0 else []
        command += [f"--window-size={WINDOW[0]},{WINDOW[1]}", f"--screenshot={taken}", shown.as_uri()]
        subprocess.run(command, capture_output=True, timeout=120, check=False)
        if not taken.exists():
            raise UserError(f"{browser} took no picture: try `{browser} --headless --screenshot about:blank`")
        return Image.open(io.BytesIO(taken.read_bytes())).convert("RGB")


def grid(part: Part, phantom: bool) -> Image.Image:
    """Per grade that was generated: a row of its photographs, and one of each kind of generator with the scores."""
    rows: list[tuple[str, str, list[np.ndarray], list[float]]] = []
    generated = samples.groups(part.samples, "grade", "kind")
    for grade in sorted({key[0] for key in generated}):
        rows.append((NAMES[grade], "phantoms" if phantom else "photographs", _photographs(part, grade), []))
        for kind in sorted({key[1] for key in generated if key[0] == grade}, key=lambda kind: (kind != "plain", kind)):
            found = part.samples.take(generated[grade, kind])
            found = found.filter(pa.array(samples.usable(found))).sort_by("index").slice(0, COLUMNS)
            pixels = _pixels(part.run, "synthetic", schema.SYNTHETIC, "sample_id", found["sample_id"].to_pylist())
            rows.append(("", f"synthetic, {kind}", pixels, samples.scores(found).tolist()))
    height = sum(_row_height(row) for row in rows) + GAP
    canvas = Image.new("RGB", (LEFT + COLUMNS * (CELL + GAP), height), palette.COLOURS["surface"][0])
    draw, ink, soft = ImageDraw.Draw(canvas), palette.COLOURS["ink"][0], palette.COLOURS["soft"][0]
    top = GAP
    for row in rows:
        grade_name, what, pictures, scores = row
        draw.text((6, top), grade_name, ink, ImageFont.load_default(17))
        draw.text((6, top + (26 if grade_name else 4)), what, soft, ImageFont.load_default(12))
        for column, picture in enumerate(pictures):
            x = LEFT + column * (CELL + GAP)
            canvas.paste(Image.fromarray(picture).resize((CELL, CELL), Image.Resampling.LANCZOS), (x, top))
            if scores:
                draw.text((x + 2, top + CELL + 1), f"score {scores[column]:.2f}", soft, ImageFont.load_default(11))
        top += _row_height(row)
    return canvas


def _row_height(row: tuple[str, str, list[np.ndarray], list[float]]) -> int:
    return CELL + (LINE if row[3] else GAP)


def _photographs(part: Part, grade: int) -> list[np.ndarray]:
    table = part.photographs.filter((pc.field("split") == "train") & (pc.field("grade") == grade))
    ids = sorted(table["image_id"].to_pylist())[:COLUMNS]
    return _pixels(part.run, "real", schema.REAL, "image_id", ids)


def _pixels(run: Run, table: str, table_schema: pa.Schema, key: str, ids: list[str]) -> list[np.ndarray]:
    """uint8 (H, W, 3) of each id, in their order."""
    found = shards.read(run, table, table_schema, [key, "image"], pc.field(key).isin(ids))
    data = dict(zip(found[key].to_pylist(), found["image"].to_pylist(), strict=True))
    return [images.decode(data[name]) for name in ids]


def small_png(picture: Image.Image, most: int = MAX_BYTES) -> bytes:
    """A PNG of at most `most` bytes: with fewer colours first, then smaller."""
    while True:
        for colours in (256, 128, 64):
            reduced = picture.quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
            buffer = io.BytesIO()
            reduced.save(buffer, "PNG", optimize=True)
            if buffer.tell() <= most:
                return buffer.getvalue()
        picture = picture.resize((round(0.85 * picture.width), round(0.85 * picture.height)), Image.Resampling.LANCZOS)
