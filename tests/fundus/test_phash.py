"""Hashes of a picture, its mirror image and its copies, and the bits that they are made of."""

import numpy as np
from PIL import Image
from scipy import fft

from fundus.trees import photograph, saved
from raydr.fundus.phash import ORIENTATIONS, hamming, laid, mirrored, phash, turned
from raydr.fundus.preprocess import prepare


def test_phash_of_the_mirror_and_of_the_turned_picture_follow_from_the_hash(retina: np.ndarray) -> None:
    for seed in range(20):
        pixels = prepare(photograph(seed), 96).pixels
        assert mirrored(phash(pixels)) == phash(pixels[:, ::-1])
        assert mirrored(mirrored(phash(pixels))) == phash(pixels)
        assert turned(phash(pixels)) == phash(pixels[::-1, ::-1])
        for is_mirrored, is_turned, mask in ORIENTATIONS:
            other = laid(pixels.transpose(2, 0, 1), is_mirrored, is_turned).transpose(1, 2, 0)
            assert int(phash(pixels), 16) ^ mask == int(phash(other), 16)
    assert hamming(phash(retina), phash(retina[:, ::-1])) > 16
    assert hamming(phash(retina), phash(retina[::-1, ::-1])) > 16


def test_phash_survives_copying_and_tells_photographs_apart(retina: np.ndarray) -> None:
    image = Image.fromarray(retina)
    reference = phash(prepare(saved(image), 512).pixels)
    copies = {
        "JPEG 30": saved(image, "JPEG", quality=30),
        "a fifth": saved(image.resize((280, 280))),
        "half as bright": saved(image.point(lambda v: v * 0.5)),
        "3 % cut off": saved(Image.fromarray(retina[40:-40, 40:-40])),
    }
    for name, data in copies.items():
        assert hamming(reference, phash(prepare(data, 512).pixels)) <= 6, name
    values = [phash(prepare(photograph(seed), 96).pixels) for seed in range(40)]
    distances = [hamming(a, b) for i, a in enumerate(values) for b in values[:i]]
    assert min(distances) > 6
    assert 28 < np.mean(distances) < 36  # independent bits would differ in 32


def test_hamming_by_hand() -> None:
    assert hamming("0000000000000000", "ffffffffffffffff") == 64
    assert hamming("8000000000000001", "0000000000000003") == 2


def test_phash_bits_are_the_signs_of_the_dct() -> None:
    """A picture made of one cosine sets exactly the bit of its frequency (row 2, column 3 of frequencies 1-8)."""
    coefficients = np.zeros((64, 64))
    coefficients[3, 4] = 1
    wave = fft.idctn(coefficients, norm="ortho")
    pixels = np.clip(128 + 100 * wave / np.abs(wave).max(), 0, 255).astype(np.uint8)
    bits = int(phash(np.stack([pixels] * 3, -1)), 16)
    inverse = int(phash(np.stack([255 - pixels] * 3, -1)), 16)
    position = 63 - (2 * 8 + 3)
    assert bits >> position & 1 == 1
    assert inverse >> position & 1 == 0
