"""Pairs of photographs that show the same picture: equal bytes, or nearly equal under copying, resizing, mirroring,
turning upside down.

Two stages. Perceptual hashes propose: all pairs are compared, 5e9 for 50,000 photographs in four orientations in a few
seconds, because a comparison is one XOR and one bit count. The vessel detail of both pictures then decides: fundus
photographs are so alike that, at equal recall, hashes alone would report one false pair in ten thousand.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import fft

from raydr.fundus.phash import ORIENTATIONS, detail, laid
from raydr.images import decode

# Bits in which proposed pairs may differ: JPEG copies and resized copies of phantoms stay within 4 in 99 % of cases.
MAX_BITS = 6
# Correlation of vessel detail that makes a pair, over shifts of 2 of 64 px and the zooms below. Copies reach .93-.99;
# 580,000 pairs of different phantoms stay under .81.
MIN_CORRELATION = 0.88
MAX_SHIFT = 2
# A copy whose edges were trimmed is cropped to another scale: 3 % of trimming costs a quarter of the correlation.
ZOOMS = (1.015, 1.03, 1.045, 1.06)
# Under this no zoom reached MIN_CORRELATION.
WORTH_ZOOMING = 0.45


@dataclass(frozen=True)
class Pair:
    """Two rows of a table that show the same picture; `a < b`."""

    a: int
    b: int
    kind: str  # exact, perceptual
    mirrored: bool
    turned: bool  # by 180 degrees
    bits: int  # Hamming distance of the hashes
    correlation: float  # of vessel detail, 1.0 for exact pairs


def near_pairs(
    hashes: np.ndarray, max_bits: int = MAX_BITS, mask: int = 0, block: int = 64, stripe: int = 4096
) -> np.ndarray:
    """Indices (N, 2), first below second, of uint64 `hashes` (M,) that differ in at most `max_bits` bits.

    `mask` is XORed into the second of each pair: those of ORIENTATIONS find mirrored and turned copies.
    Blocks of 64 x 4,096 comparisons stay in the second-level cache.
    """
    found = [np.empty((0, 2), np.int64)]
    other = hashes ^ np.uint64(mask)
    for i in range(0, len(hashes), block):
        left = hashes[i : i + block, None]
        for j in range(i, len(hashes), stripe):
            near = np.bitwise_count(left ^ other[None, j : j + stripe]) <= max_bits
            if near.any():  # hardly ever, and a fifth of the time that asking where takes
                rows, columns = np.nonzero(near)
                found.append(np.column_stack([rows + i, columns + j]))
    pairs = np.concatenate(found)
    return pairs[pairs[:, 0] < pairs[:, 1]]


def correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Largest correlation of `detail` pictures (N, PX, PX) over shifts of up to MAX_SHIFT px, (N,)."""
    product = fft.rfft2(a) * np.conj(fft.rfft2(b))
    shifted = fft.irfft2(product, s=a.shape[1:])
    near = np.r_[-MAX_SHIFT : MAX_SHIFT + 1]
    return shifted[:, near[:, None], near[None, :]].max(axis=(1, 2))


def zoomed_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Largest correlation of two uint8 RGB pictures when either is magnified by one of ZOOMS."""
    magnified = np.stack([*(detail(a, zoom) for zoom in ZOOMS), *[detail(a)] * len(ZOOMS)])
    others = np.stack([*[detail(b)] * len(ZOOMS), *(detail(b, zoom) for zoom in ZOOMS)])
    return float(correlation(magnified, others).max())


def exact_pairs(digests: Sequence[str]) -> list[Pair]:
    """Each repeated digest's later rows, paired with its first."""
    first: dict[str, int] = {}
    return [
        Pair(first[digest], index, "exact", False, False, 0, 1.0)
        for index, digest in enumerate(digests)
        if first.setdefault(digest, index) != index
    ]


def perceptual_pairs(
    hashes: Sequence[str],
    image_of: Callable[[int], bytes],
    on_event: Callable[[dict], None] = lambda event: None,
    batch: int = 512,
) -> Iterator[Pair]:
    """Pairs whose hashes are near and whose vessel detail agrees, in any of ORIENTATIONS.

    `image_of(index)` gives encoded bytes; only proposed pictures are decoded, each once (8 KB kept of each).
    """
    values = np.array([int(value, 16) for value in hashes], dtype=np.uint64)
    details: dict[int, np.ndarray] = {}

    def detail_of(index: int) -> np.ndarray:
        if index not in details:
            details[index] = detail(decode(image_of(index))).astype(np.float16)
        return details[index]

    seen: set[tuple[int, int]] = set()
    for is_mirrored, is_turned, mask in ORIENTATIONS:
        proposed = near_pairs(values, mask=mask)
        for start in range(0, len(proposed), batch):
            chunk = proposed[start : start + batch]
            a = np.stack([detail_of(i) for i in chunk[:, 0]]).astype(np.float32)
            b = np.stack([detail_of(j) for j in chunk[:, 1]]).astype(np.float32)
            for (i, j), value in zip(chunk.tolist(), correlation(a, laid(b, is_mirrored, is_turned)), strict=True):
                if (i, j) in seen:
                    continue
                if WORTH_ZOOMING <= value < MIN_CORRELATION:
                    other = laid(decode(image_of(j)).transpose(2, 0, 1), is_mirrored, is_turned).transpose(1, 2, 0)
                    value = zoomed_correlation(decode(image_of(i)), other)
                if value >= MIN_CORRELATION:
                    seen.add((i, j))
                    bits = (int(values[i]) ^ int(values[j]) ^ mask).bit_count()
                    yield Pair(i, j, "perceptual", is_mirrored, is_turned, bits, round(float(value), 4))
            on_event({"stage": "audit", "what": "near-duplicates", "done": start + len(chunk), "total": len(proposed)})


def find_pairs(
    digests: Sequence[str],
    hashes: Sequence[str],
    image_of: Callable[[int], bytes],
    on_event: Callable[[dict], None] = lambda event: None,
) -> list[Pair]:
    """Exact and perceptual pairs among rows given by sha256 and phash, sorted by row.

    A photograph that repeats exactly takes part in the perceptual search once, by its first row.
    """
    exact = exact_pairs(digests)
    repeats = {pair.b for pair in exact}
    unique = [index for index in range(len(digests)) if index not in repeats]
    found = perceptual_pairs([hashes[i] for i in unique], lambda k: image_of(unique[k]), on_event)
    near = [Pair(unique[p.a], unique[p.b], p.kind, p.mirrored, p.turned, p.bits, p.correlation) for p in found]
    return sorted([*exact, *near], key=lambda pair: (pair.a, pair.b))
