"""Photographs decoded once per node: a memory-mapped uint8 array that grows, keyed by content hash.

    {cache_dir}/{px}px.u8        images back to back, px * px * 3 bytes each
    {cache_dir}/{px}px.sha256    their digests in the same order, 32 bytes each
    {cache_dir}/{px}px.lock      flock held while appending

Images are only ever appended, pixels first and digests after, the latter by an atomic rename: a reader
counts the digests and trusts what lies before, so a builder killed at any moment leaves nothing worse
than bytes that the next one overwrites, and a position once given stays valid. An arm is then an index
array. Pages of the map belong to the system's page cache: processes of a node share them and none of
them counts the array as its own memory (DDR at 512 px is 9.8 GB).
"""

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import UnidentifiedImageError

from raydr import images
from raydr.errors import DamagedData, MissingInput

# Decoded pixels held in memory while building, bytes; at least one image a thread.
CHUNK_BYTES = 64 * 2**20


class ImageArray:
    """uint8 (N, px, px, 3), read-only, indexed by position; `positions` maps content hashes to them."""

    def __init__(self, cache_dir: str | Path, px: int) -> None:
        """Open what is built so far (possibly nothing); later additions need another instance."""
        self.px = px
        self._files = _Files(Path(cache_dir), px)
        digests = self._files.digests()
        self._position = {digest.hex(): position for position, digest in enumerate(digests)}
        shape = (len(digests), px, px, 3)
        # An empty file cannot be mapped.
        self._pixels = (
            np.memmap(self._files.pixels, np.uint8, "r", shape=shape) if digests else np.zeros(shape, np.uint8)
        )

    @classmethod
    def build(
        cls, cache_dir: str | Path, px: int, rows: Iterable[tuple[str, bytes]], num_threads: int | None = None
    ) -> "ImageArray":
        """Append the images of `rows` = (sha256 of the encoded bytes, encoded bytes) that are not there yet.

        Images of another side are resized to `px` as `raydr.images.decode` does. Several processes may
        call this at once: one appends, the others wait and then find the images there, undecoded. Needs
        about 64 MB beside the encoded bytes of as many images. Raises DamagedData for bytes that do not
        match their hash or are no image; what came before them stays.
        """
        files = _Files(Path(cache_dir), px)
        files.directory.mkdir(parents=True, exist_ok=True)
        num_threads = num_threads or min(8, os.cpu_count() or 1)
        chunk = max(num_threads, CHUNK_BYTES // files.image_bytes)
        with files.locked(), ThreadPoolExecutor(num_threads) as pool:
            digests = files.digests()
            known = set(digests)
            for group in _chunks(_unseen(rows, known), chunk):
                files.append(digests, list(pool.map(lambda row: _decode(row[0], row[1], px), group)))
                digests += [bytes.fromhex(sha256) for sha256, _ in group]
                files.publish(digests)
        return cls(cache_dir, px)

    @classmethod
    def extend(
        cls,
        cache_dir: str | Path,
        px: int,
        sha256s: Iterable[str],
        make: Callable[[Sequence[str]], Sequence[np.ndarray]],
    ) -> "ImageArray":
        """Append what `make(sha256s)` computes, uint8 (px, px, 3) each, for those that are not there yet.

        As `build` for pixels that no file holds: keyed by the hash of what they are made from.
        """
        files = _Files(Path(cache_dir), px)
        files.directory.mkdir(parents=True, exist_ok=True)
        with files.locked():
            digests = files.digests()
            known = set(digests)
            todo = [sha256 for sha256 in dict.fromkeys(sha256s) if bytes.fromhex(sha256) not in known]
            size = max(1, CHUNK_BYTES // files.image_bytes)
            for start in range(0, len(todo), size):
                chunk = todo[start : start + size]
                made = make(chunk)
                assert all(image.shape == (px, px, 3) and image.dtype == np.uint8 for image in made)
                files.append(digests, list(made))
                digests += [bytes.fromhex(sha256) for sha256 in chunk]
                files.publish(digests)
        return cls(cache_dir, px)

    def missing(self, sha256s: Iterable[str]) -> list[str]:
        """Those of `sha256s` that are not in the array, each once, in order: what `build` must be given."""
        return [sha256 for sha256 in dict.fromkeys(sha256s) if sha256 not in self._position]

    def positions(self, sha256s: Sequence[str]) -> np.ndarray:
        """Where these images lie: int64 (n,). Raises MissingInput naming the first that is not there."""
        absent = self.missing(sha256s)
        if absent:
            raise MissingInput(
                f"{len(absent)} of {len(sha256s)} images are not in the array {self._files.pixels}, the first is "
                f"{absent[0]}: build it from the rows that hold them"
            )
        return np.fromiter((self._position[sha256] for sha256 in sha256s), dtype=np.int64, count=len(sha256s))

    def __getitem__(self, positions: Any) -> np.ndarray:
        """Pixels uint8 (n, px, px, 3) at `positions`, copied out of the map by one gather."""
        return np.asarray(self._pixels[positions])

    def __len__(self) -> int:
        return len(self._pixels)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._pixels.shape

    def __reduce__(self) -> tuple:
        """Sent to another process as a path: it maps the same file instead of copying gigabytes."""
        return ImageArray, (str(self._files.directory), self.px)


class Joined:
    """Several arrays of one side as one: positions of the second follow those of the first. Copies nothing."""

    def __init__(self, *parts: ImageArray) -> None:
        assert len({part.px for part in parts}) == 1, [part.px for part in parts]
        self._parts = parts
        self._starts = np.cumsum([0, *(len(part) for part in parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def positions(self, sha256s: Sequence[str]) -> np.ndarray:
        """Where these images lie in the first array."""
        return self._parts[0].positions(sha256s)

    def __getitem__(self, positions: Any) -> np.ndarray:
        """Pixels uint8 (n, px, px, 3) at `positions` (n,)."""
        positions = np.asarray(positions)
        px = self._parts[0].px
        pixels = np.empty((len(positions), px, px, 3), np.uint8)
        for part, start, stop in zip(self._parts, self._starts[:-1], self._starts[1:], strict=True):
            inside = (positions >= start) & (positions < stop)
            if inside.any():
                pixels[inside] = part[positions[inside] - start]
        return pixels


class _Files:
    def __init__(self, directory: Path, px: int) -> None:
        self.directory = directory
        self.pixels = directory / f"{px}px.u8"
        self.index = directory / f"{px}px.sha256"
        self.lock = directory / f"{px}px.lock"
        self.image_bytes = px * px * 3

    def digests(self) -> list[bytes]:
        data = self.index.read_bytes() if self.index.exists() else b""
        return [data[start : start + 32] for start in range(0, len(data), 32)]

    @contextmanager
    def locked(self) -> Iterator[None]:
        with open(self.lock, "w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def append(self, digests: list[bytes], decoded: list[np.ndarray]) -> None:
        with open(self.pixels, "r+b" if self.pixels.exists() else "w+b") as handle:
            handle.seek(len(digests) * self.image_bytes)
            for image in decoded:
                handle.write(np.ascontiguousarray(image).data)
            handle.flush()
            os.fsync(handle.fileno())

    def publish(self, digests: list[bytes]) -> None:
        temporary = self.index.with_suffix(".part")
        with open(temporary, "wb") as handle:
            handle.write(b"".join(digests))
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, self.index)


def _unseen(rows: Iterable[tuple[str, bytes]], known: set[bytes]) -> Iterator[tuple[str, bytes]]:
    for sha256, data in rows:
        digest = bytes.fromhex(sha256)
        if digest not in known:
            known.add(digest)
            yield sha256, data


def _chunks(rows: Iterator[tuple[str, bytes]], size: int) -> Iterator[list[tuple[str, bytes]]]:
    while group := list(islice(rows, size)):
        yield group


def _decode(sha256: str, data: bytes, px: int) -> np.ndarray:
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DamagedData(f"the bytes of image {sha256} have another hash: verify and repair their shard")
    try:
        return images.decode(data, px)
    except UnidentifiedImageError as error:
        raise DamagedData(f"image {sha256} is not a readable image: quarantine its row and ingest again") from error
