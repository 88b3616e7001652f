"""Hostile inputs: whatever a stranger's file holds, it is refused in one sentence or set aside, and nothing is
written outside the run.

Each property runs on 50 cases by default, the same every time, and on 1,000 new ones when marked slow, 11,000 in all.
"""

import contextlib
import dataclasses
import io
import json
import re
import shutil
import struct
import tempfile
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from raydr import cli, recipes, schema, shards
from raydr.diffusion import lora
from raydr.errors import UserError
from raydr.fundus.preprocess import Prepared, Unusable, prepare
from raydr.fundus.readers.registry import READERS
from raydr.grading import ensemble
from raydr.grading.weights import read_state_dict
from raydr.images import decode
from raydr.parquet import to_parquet
from raydr.record import stored_recipe
from raydr.storage import DONE, Run

FEW, MANY = 50, 1000
PROPERTIES = {}


@contextlib.contextmanager
def refused_cleanly(*others):
    """What is inside may succeed, or raise a user's error of one sentence (or one of `others`); nothing else."""
    try:
        yield
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017 (it need not be raised)
    except others:
        return


def hostile(strategy, many=MANY):
    """Register `check(value, folder)`; `folder` holds nothing but what the check puts into it."""

    def register(check):
        PROPERTIES[check.__name__] = (strategy, check, many)
        return check

    return register


def holds(name, cases):
    strategy, check, many = PROPERTIES[name]

    @settings(
        max_examples=min(cases, many), deadline=None, database=None, print_blob=True,
        suppress_health_check=list(HealthCheck), derandomize=cases <= FEW,
    )  # fmt: skip
    @given(strategy)
    def property(value):
        folder = Path(tempfile.mkdtemp(prefix="rh"))
        (folder / "outside").write_text("as it was")
        try:
            check(value, folder)
            assert {path.name for path in folder.iterdir()} <= {"outside", "run", "to"}
            assert (folder / "outside").read_text() == "as it was"
        finally:
            shutil.rmtree(folder)

    property()


# What strangers send.


@st.composite
def mutated(draw, originals):
    """One of `originals` (bytes) with some bytes changed, cut out, doubled or cut off."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 6))):
        if not data:
            break
        at = draw(st.one_of(st.integers(0, min(200, len(data) - 1)), st.integers(0, len(data) - 1)))
        how = draw(st.sampled_from(["set", "set", "cut", "double", "end", "insert"]))
        if how == "set":
            data[at] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, data[at] ^ 1, data[at] ^ 0x80]))
        elif how == "cut":
            del data[at : at + draw(st.integers(1, 64))]
        elif how == "double":
            data[at:at] = data[at : at + draw(st.integers(1, 64))]
        elif how == "end":
            del data[at:]
        else:
            data[at:at] = draw(st.binary(min_size=1, max_size=16))
    return bytes(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
    | st.sampled_from(["../../outside", "/etc/passwd", "", "..", 10**400, -1, 0, "nan"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@st.composite
def changed(draw, value):
    """A JSON value with one or two places anywhere in it replaced, removed or renamed."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 2))):
        here = value
        while True:
            keys = list(here) if isinstance(here, dict) else list(range(len(here)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(here[key], dict | list) and here[key] and draw(st.integers(0, 3)):
                here = here[key]
                continue
            how = draw(st.sampled_from(["replace", "replace", "remove", "rename"]))
            if how == "replace":
                here[key] = draw(JSON)
            elif how == "remove":
                del here[key]
            elif isinstance(here, dict):
                here[draw(st.text(max_size=6))] = here.pop(key)
            break
    return value


NAMES = st.one_of(
    st.text(max_size=30),
    st.lists(
        st.sampled_from(["..", ".", "a", "", "~", "outside", "C:", "%2e%2e", "..\\", "a\0b", "real"]), max_size=6
    ).map("/".join),
)


# Names.


@hostile(NAMES)
def keys_stay_inside_the_run(name, folder):
    run = Run(str(folder / "run"))
    for use in (
        lambda: run.create(name, b"x"), lambda: run.replace(name, b"x"), lambda: run.child(name).create("k", b"x"),
        lambda: run.delete(name), lambda: run.read(name), lambda: run.list(name),
        lambda: run.download(name, folder / "to"), lambda: shards.quarantine(run, "real", name, "reason", name),
        lambda: shards.record_start(run, "real/a.parquet", name),
    ):  # fmt: skip
        with refused_cleanly():
            use()
    if (folder / "run").exists():
        for path in (folder / "run").rglob("*"):
            assert (folder / "run") in path.resolve().parents


MARK = {"files": {"unet/config.json": {"bytes": 2, "sha256": "0" * 64}, "a.safetensors": {"bytes": 1, "sha256": "1"}}}


@hostile(
    st.one_of(
        changed(MARK),
        JSON,
        st.dictionaries(NAMES, st.fixed_dictionaries({"bytes": st.just(1), "sha256": st.just("x")}), max_size=2).map(
            lambda files: {"files": files}
        ),
    )
)
def marks_of_uploads(mark, folder):
    run = Run(str(folder / "run"))
    run.create_json(f"generators/g/{DONE}", mark)
    run.create("generators/g/unet/config.json", b"{}")
    try:
        run.download("generators/g", folder / "to")
    except UserError:
        assert not (folder / "to").exists()


# Pictures.


def picture(kind, **more):
    buffer = io.BytesIO()
    x = np.linspace(0, 255, 48 * 64 * 3).reshape(48, 64, 3).astype(np.uint8)
    Image.fromarray(x).save(buffer, kind, **more)
    return buffer.getvalue()


PICTURES = [
    picture("PNG"), picture("JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"),
    picture("WEBP"), picture("TIFF"), picture("TIFF", compression="tiff_lzw"), picture("BMP"), picture("GIF"),
    picture("PPM"), picture("JPEG2000"),
]  # fmt: skip


@hostile(st.one_of(mutated(PICTURES), st.binary(max_size=200)))
def photographs(data, folder):
    with refused_cleanly(Unusable):
        assert isinstance(prepare(data, 32, "circle"), Prepared)
    with refused_cleanly(OSError):
        assert decode(data, 32).shape == (32, 32, 3)


# Tags that Pillow looks at: orientation, sizes, the offsets of other blocks; and types that they should not have.
TAGS = st.one_of(
    st.sampled_from(
        [0x112, 0x112, 0x100, 0x101, 0x102, 0x103, 0x106, 0x111, 0x115, 0x116, 0x11C, 0x8769, 0x8825, 0x2BC]
    ),
    st.integers(0, 65535),
)
WORDS = st.one_of(st.sampled_from([0, 1, 2, 3, 4, 6, 8, 26, 100, 2**16, 2**31, 2**32 - 1]), st.integers(0, 2**32 - 1))


@st.composite
def tagged(draw):
    """A JPEG, WebP or PNG with an EXIF block of any entries, or a TIFF some of whose entries say something else."""
    kind = draw(st.sampled_from(["JPEG", "WEBP", "PNG", "TIFF"]))
    if kind != "TIFF":
        order = draw(st.sampled_from("<>"))
        entries = draw(st.lists(st.tuples(TAGS, st.integers(0, 14), WORDS, WORDS), max_size=4))
        block = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(entries))
        block += b"".join(struct.pack(order + "HHII", *entry) for entry in entries)
        block += struct.pack(order + "I", draw(WORDS)) + draw(st.binary(max_size=40))
        return picture(kind, exif=block if kind == "PNG" else b"Exif\0\0" + block)
    data = bytearray(draw(st.sampled_from(TIFFS)))
    start = struct.unpack("<I", data[4:8])[0]
    count = struct.unpack("<H", data[start : start + 2])[0]
    for _ in range(draw(st.integers(1, 3))):
        at = start + 2 + 12 * draw(st.integers(0, count - 1))
        where, layout, values = draw(
            st.sampled_from([(0, "<H", TAGS), (2, "<H", st.integers(0, 14)), (4, "<I", WORDS), (8, "<I", WORDS)])
        )
        struct.pack_into(layout, data, at + where, draw(values))
    return bytes(data)


TIFFS = [picture("TIFF"), *(picture("TIFF", compression=kind) for kind in ("tiff_lzw", "tiff_adobe_deflate", "jpeg"))]


@hostile(tagged())
def tags_of_photographs(data, folder):
    photographs(data, folder)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, *chunks):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


BOMB = zlib.compress(b"\0" * (64 << 20), 1)


@hostile(
    st.tuples(
        st.integers(1, 2**31 - 1), st.integers(1, 2**31 - 1), st.sampled_from([b"zTXt", b"iCCP", b"iTXt", b"IDAT"])
    ),
    many=300,
)
def bombs(value, folder):
    """Some KB that say they are gigapixels, or whose text unpacks to 64 MB: refused, in less memory than they want."""
    width, height, kind = value
    packed = BOMB if kind != b"IDAT" else zlib.compress(b"\0" * 1000)
    before = {b"zTXt": b"k\0\0", b"iCCP": b"k\0\0", b"iTXt": b"k\0\1\0\0\0", b"IDAT": b""}[kind]
    tracemalloc.start()
    try:
        with pytest.raises(Unusable):
            prepare(png(width, height, chunk(kind, before + packed)), 32, "circle")
        assert tracemalloc.get_traced_memory()[1] < 48 << 20
    finally:
        tracemalloc.stop()


# Tables.


def shard():
    rows = [dict.fromkeys(schema.TRIALS.names) | {"trial_id": f"t{k}", "seed": k} for k in range(40)]
    table = pa.Table.from_pylist(rows, schema.TRIALS)
    return table.replace_schema_metadata({"raydr.fingerprint": "f", "raydr.key": "trials/results/a.parquet"})


SHARD = to_parquet(shard())


@hostile(mutated([SHARD]))
def shards_of_a_table(data, folder):
    """The bytes of a committed shard are changed: readers say so or find the rows, `verify` reports it."""
    run = Run(str(folder / "run"))
    shards.commit(run, "trials/results/a.parquet", shard(), schema.TRIALS, "f")
    run.replace("trials/results/a.parquet", data)
    problems = shards.verify(run)
    assert data == run.read("trials/results/a.parquet")
    assert {problem.kind for problem in problems} == ({"damaged"} if data != SHARD else set())
    with refused_cleanly():
        assert shards.read(run, "trials/results", schema.TRIALS).num_rows == 40
    # A shard without a record, as a kill leaves it, is adopted only if it is whole.
    run.delete("_commits/trials/results/a.json")
    with refused_cleanly():
        shards.commit(run, "trials/results/a.parquet", shard(), schema.TRIALS, "f")
        assert shards.read(run, "trials/results", schema.TRIALS).num_rows == 40


COMMIT = {
    "key": "trials/results/a.parquet", "rows": 40, "bytes": len(SHARD), "sha256": "0" * 64, "fingerprint": "f",
    "schema": "s", "extra": {"accepted": 3},
}  # fmt: skip


@hostile(st.one_of(changed(COMMIT).map(lambda value: json.dumps(value).encode()), st.binary(max_size=50), JSON.map(
    lambda value: json.dumps(value).encode()
)))  # fmt: skip
def commit_records(data, folder):
    run = Run(str(folder / "run"))
    run.create("trials/results/a.parquet", SHARD)
    run.create("_commits/trials/results/a.json", data)
    for use in (lambda: shards.commits(run), lambda: shards.read(run, "trials/results", schema.TRIALS)):
        with refused_cleanly():
            use()
    problems = shards.verify(run)
    assert problems
    shards.repair(run, problems)


# A run's record.

RECIPES = [json.loads(json.dumps({"recipe": dataclasses.asdict(recipes.named(name))})) for name in ("debug", "demo")]


@hostile(st.one_of(st.sampled_from(RECIPES).flatmap(changed), JSON))
def recipe_json(record, folder):
    run = Run(str(folder / "run"))
    run.create_json("recipe.json", record)
    with refused_cleanly():
        stored_recipe(run)
    for command in (["status", run.url], ["run", "--out", run.url, "--dry-run"]):
        assert cli.main(command) in (0, 2)


# Label files.

CSV = [
    b"image_path,grade,patient\na.jpg,1,p\nb.jpg,2,q\n", b"image,level\n10_left,0\n10_right,4\n",
    b"a.jpg 0\nb.jpg 5\n", b"\xef\xbb\xbfimage_id;dr_grade\r\na.jpg;3\r\n", b'Image name,Retinopathy grade\n"a",1\n',
]  # fmt: skip
LISTING = [
    "a.jpg", "b.jpg", "train/a.jpg", "10_left.jpeg", "10_right.jpeg", "../outside.jpg", "DR_grading/train/a.jpg",
    "/abs.jpg", "test/b.jpg", "valid/c.png", "1/x.png", "4/y.png", "train_images/a.png",
]  # fmt: skip
LABEL_FILES = ["train.csv", "train.txt", "trainLabels.csv", "DR_grading/train.txt", "labels.csv", "messidor_data.csv"]
CELL = st.one_of(
    st.sampled_from(
        ["a.jpg", "../outside.jpg", "9" * 400, "-1", "1.0", "1e400", "", '"', "0", "4", "nan", "\0", "a,b"]
    ),
    st.text(max_size=8),
)
TEXT = st.lists(st.lists(CELL, min_size=1, max_size=4).map(",".join), max_size=6).map(
    lambda lines: "\n".join(["image_path,grade,patient", *lines]).encode("utf-8", "replace")
)


@hostile(
    st.tuples(
        st.sampled_from(sorted(READERS)),
        st.dictionaries(
            st.sampled_from(LABEL_FILES), st.one_of(mutated(CSV), TEXT, st.binary(max_size=80)), max_size=3
        ),
        st.lists(st.sampled_from(LISTING), max_size=8, unique=True),
    )
)
def label_files(value, folder):
    name, files, listing = value
    files = {path: data for path, data in files.items() if re.search(READERS[name].label_files, path, re.IGNORECASE)}
    with refused_cleanly():
        rows, rejected = READERS[name].read(sorted([*listing, *files]), files)
        assert {row.path for row in rows} <= set(listing)  # a label never names a file that was not listed
        assert all(row.grade in (None, 0, 1, 2, 3, 4) for row in rows)
        assert all(entry.reason for entry in rejected)


# Weights.


def tensors():
    return {
        f"unet.down.{side}.weight": torch.ones(2, 3) if side.endswith("down") else torch.ones(4, 2)
        for side in ("lora.down", "lora.up")
    }


@pytest.fixture(scope="module", autouse=True)
def weights(tmp_path_factory):
    """Bytes of a LoRA and of a torch file, for the strategies below."""
    folder = tmp_path_factory.mktemp("weights")
    save_file(tensors(), folder / lora.WEIGHTS, metadata={"format": "pt", "lora_adapter_metadata": "{}"})
    torch.save({"net": {"module.fc.weight": torch.ones(3, 3)}}, folder / "net.pth")
    ORIGINALS["safetensors"] = (folder / lora.WEIGHTS).read_bytes()
    ORIGINALS["torch"] = (folder / "net.pth").read_bytes()


ORIGINALS: dict[str, bytes] = {}
LATER = st.deferred(lambda: st.tuples(st.just("safetensors"), mutated([ORIGINALS["safetensors"]])))
TORCH = st.deferred(lambda: st.tuples(st.just("torch"), mutated([ORIGINALS["torch"]])))


@hostile(st.one_of(LATER, TORCH))
def weights_of_others(value, folder):
    kind, data = value
    (folder / "run").mkdir()
    path = folder / "run" / ("a.safetensors" if kind == "safetensors" else "a.pth")
    path.write_bytes(data)
    with refused_cleanly():
        assert read_state_dict(path)
    if kind == "safetensors":
        (folder / "run" / lora.WEIGHTS).write_bytes(data)
        with refused_cleanly():
            assert lora.read(folder / "run")


GRADER = {
    "format": 1, "name": "m", "grader": RECIPES[0]["recipe"]["sweep"]["grader"], "seed": 0, "role": "score",
    "fold": None, "inner_fold": 0, "provenance": "trained", "trained_on": "", "calibrated_on": "",
}  # fmt: skip


@hostile(st.one_of(changed(GRADER), JSON))
def records_of_graders(record, folder):
    (folder / "run").mkdir()
    (folder / "run" / ensemble.META).write_text(json.dumps(record))
    with refused_cleanly():
        ensemble.load_meta(folder / "run")


@pytest.mark.parametrize("name", sorted(PROPERTIES))
def test_a_few(name, capsys):
    holds(name, FEW)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", sorted(PROPERTIES))
def test_thousands(name, capsys):
    holds(name, MANY)


# By hand: what a mutation rarely hits.


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.write_text, (tmp_path / "owned", "x"))

    torch.save({"net": Evil()}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="without running code"):
        read_state_dict(tmp_path / "a.pth")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("value", [b"\x02\0\x02\0\0\0ab\0\0", b"\x07\0\x01\0\0\0x\0\0\0"])
def test_an_orientation_that_is_text_turns_nothing(value):
    data = picture("JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01" + value + b"\0\0\0\0")
    assert (prepare(data, 32).source_width, prepare(data, 32).source_height) == (64, 48)


def test_a_parquet_bomb_is_refused_before_it_unpacks(monkeypatch):
    """Some KB of Parquet that unpack to 8 GB of one repeated string."""
    import pyarrow.parquet as pq

    from raydr import parquet

    monkeypatch.setattr(parquet, "MAX_BYTES", 64 << 20)
    sink, words = io.BytesIO(), pa.DictionaryArray.from_arrays(pa.array([0] * (1 << 20), pa.int32()), ["x" * 8192])
    pq.write_table(pa.table({"a": words}), sink)
    data = sink.getvalue()
    assert len(data) < 100_000
    before = pa.total_allocated_bytes()
    with pytest.raises(parquet.UNREADABLE, match="unpacks"):
        parquet.inspect(data)
    assert pa.total_allocated_bytes() - before < 32 << 20


def test_a_torch_file_that_unpacks_to_more_than_it_is_is_refused(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", b"\0" * (64 << 20))
    with pytest.raises(UserError, match="unpacks"):
        read_state_dict(tmp_path / "a.pth")
