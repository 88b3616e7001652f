"""Memory of an ingest: a worker's on large photographs, and everybody's on 20,000 small ones."""

import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from fundus.trees import drawing
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MIB = 1 << 20
LIMIT = 1536 * MIB


def deep_png(pixels: np.ndarray) -> bytes:
    """uint8 RGB (H, W, 3) as a PNG of 16 bits a channel, which Pillow cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = np.pad((pixels.astype(">u2") * 257).view(np.uint8).reshape(len(pixels), -1), ((0, 0), (1, 0)))
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    packed = zlib.compress(rows.tobytes(), 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def write_large(folder: Path, size: tuple[int, int]) -> None:
    """One photograph of (width, height) px in the forms that a decoder holds whole, and in the one that it scales."""
    image = drawing(1, *size)
    image.save(folder / "a.jpg", quality=90)
    image.save(folder / "rgb.png", compress_level=1)
    image.save(folder / "rgb.tif")
    image.convert("RGBA").save(folder / "rgba.png", compress_level=1)
    Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(folder / "grey16.tif")
    (folder / "rgb16.png").write_bytes(deep_png(np.asarray(image)))


WORKER = """
import json, re, sys
from raydr.cluster.source_files import prepare_rows
from raydr.fundus.readers.rows import Row
folder, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
rows = [Row(name, f"D/{k}", "D", "train", None, 0, True, None, 9) for k in range(count)]
prepared, failures = prepare_rows(rows, folder, 1024, "circle")
assert len(prepared) == count, failures
stored = sum(len(row["image"]) for row in prepared)
# Not getrusage's ru_maxrss, which starts with the size of the process that forked this one.
peak = 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
print(json.dumps({"peak": peak, "stored": stored}))
"""


def worker(folder: Path, name: str, count: int) -> dict[str, int]:
    """Peak resident bytes of a process that prepares `name` so often, and bytes of what it made."""
    command = [sys.executable, "-c", WORKER, str(folder), name, str(count)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize("name", ["a.jpg", "rgb.png", "rgb.tif", "rgba.png", "grey16.tif", "rgb16.png"])
def test_a_worker_on_twelve_megapixels_holds_one_picture_whatever_their_number(name: str, tmp_path: Path) -> None:
    write_large(tmp_path, (4000, 3000))
    few, many = worker(tmp_path, name, 8), worker(tmp_path, name, 32)
    print(name, {count: found["peak"] // MIB for count, found in ((8, few), (32, many))}, "MiB")
    assert many["peak"] < LIMIT / 2
    # What was made stays until the shard is written, and nothing else does: a picture more would be 36 MB.
    assert many["peak"] - few["peak"] < 2 * (many["stored"] - few["stored"]) + 30 * MIB


def test_a_worker_on_the_largest_picture_that_is_taken(tmp_path: Path) -> None:
    write_large(tmp_path, (8000, 8000))
    for name in ("rgb.tif", "rgba.png", "grey16.tif", "rgb16.png"):
        peak = worker(tmp_path, name, 2)["peak"]
        print(name, peak // MIB, "MiB")
        assert peak < LIMIT - 200 * MIB  # a worker of Ray's has that much before it starts
