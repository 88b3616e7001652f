"""Photographs of a run by id, small enough to be compared and shown, without holding the run in memory."""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raydr import shards
from raydr.fundus.duplicates import exact_pairs, near_pairs
from raydr.fundus.phash import ORIENTATIONS
from raydr.images import decode, jpeg
from raydr.storage import Run

# A copy's vessel detail is compared at 64 px and zoomed by 6 % at most: 192 px lose nothing, and are 10 KB.
PX = 192
# Shards whose encoded images stay in memory: 64 photographs of 1024 px are 64 MB.
SHARDS_KEPT = 2


def columns_of(run: Run, prefix: str, schema: pa.Schema, names: Sequence[str], required: bool = True) -> pa.Table:
    """Committed rows below `prefix` without their images, and in the column `shard` the path of their shard."""
    source = shards.dataset(run, prefix, schema, required)
    if not source.files:  # pyarrow knows no file names in a data set without files
        empty = pa.schema([*(schema.field(name) for name in names), ("shard", pa.string())])
        return empty.empty_table()
    return source.to_table(columns=[*names, "__filename"]).rename_columns([*names, "shard"])


def proposed(digests: Sequence[str], hashes: Sequence[str], first_new: int = 0) -> list[int]:
    """Rows that the search for near-duplicates will look at, when only pairs with a row >= `first_new` matter."""
    repeats = {pair.b for pair in exact_pairs(digests)}
    unique = np.array([index for index in range(len(digests)) if index not in repeats], dtype=np.int64)
    values = np.array([int(hashes[index], 16) for index in unique], dtype=np.uint64)
    pairs = np.concatenate([unique[near_pairs(values, mask=mask)] for _, _, mask in ORIENTATIONS])
    return sorted(set(pairs[pairs.max(axis=1) >= first_new].ravel().tolist())) if len(pairs) else []


class Pictures:
    """`pictures(image_id)` -> encoded bytes. Those fetched ahead are thumbnails of PX, read shard by shard."""

    def __init__(self, run: Run, shard_of: Mapping[str, str]) -> None:
        """`shard_of` maps image ids to shard paths, as `columns_of` gives them."""
        self._filesystem, _ = run.filesystem()
        self._shard_of = shard_of
        self._thumbnails: dict[str, bytes] = {}
        self._shards: OrderedDict[str, dict[str, bytes]] = OrderedDict()

    def fetch(self, image_ids: Iterable[str], progress: Callable[[int, int], None] | None = None) -> None:
        """Make thumbnails of these photographs, each shard read once."""
        wanted: dict[str, set[str]] = {}
        for image_id in image_ids:
            if image_id not in self._thumbnails:
                wanted.setdefault(self._shard_of[image_id], set()).add(image_id)
        total, done = sum(map(len, wanted.values())), 0

        def shrink(shard: str) -> dict[str, bytes]:
            images = self._read(shard)
            return {image_id: thumbnail(images[image_id]) for image_id in wanted[shard]}

        # Decoding frees the interpreter lock; four shards at a time are 300 MB at 1024 px.
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            for found in pool.map(shrink, sorted(wanted)):
                self._thumbnails |= found
                done += len(found)
                if progress is not None:
                    progress(done, total)

    def __call__(self, image_id: str) -> bytes:
        if image_id in self._thumbnails:
            return self._thumbnails[image_id]
        shard = self._shard_of[image_id]
        if shard not in self._shards:
            self._shards[shard] = self._read(shard)
            if len(self._shards) > SHARDS_KEPT:
                self._shards.popitem(last=False)
        return self._shards[shard][image_id]

    def _read(self, shard: str) -> dict[str, bytes]:
        with self._filesystem.open_input_file(shard) as file:
            table = pq.read_table(file, columns=["image_id", "image"])
        return dict(zip(table["image_id"].to_pylist(), table["image"].to_pylist(), strict=True))


def thumbnail(data: bytes) -> bytes:
    """An encoded square photograph at PX at most; smaller ones stay as they are."""
    pixels = decode(data)
    return data if max(pixels.shape[:2]) <= PX else jpeg(pixels, PX, quality=92)
