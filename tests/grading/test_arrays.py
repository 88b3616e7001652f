import multiprocessing
import os
import pickle

import numpy as np
import pytest

from raydr import images
from raydr.errors import DamagedData, MissingInput
from raydr.grading.arrays import ImageArray, Joined
from raydr.identity import sha256


def rows(num: int, px: int = 24, start: int = 0) -> list[tuple[str, bytes]]:
    made = []
    for index in range(start, start + num):
        data = images.encode(np.random.default_rng(index).integers(0, 256, (px, px, 3), dtype=np.uint8))
        made.append((sha256(data), data))
    return made


def test_pixels_are_those_of_the_codec_in_any_order(tmp_path):
    encoded = rows(7)
    array = ImageArray.build(tmp_path, 24, encoded)
    assert array.shape == (7, 24, 24, 3)
    wanted = [encoded[i] for i in (5, 0, 5)]
    got = array[array.positions([key for key, _ in wanted])]
    assert got.dtype == np.uint8
    for pixels, (_, data) in zip(got, wanted, strict=True):
        assert (pixels == images.decode(data)).all()


def test_other_sides_are_resized_by_the_codec(tmp_path):
    encoded = rows(3, px=40)
    array = ImageArray.build(tmp_path, 24, encoded)
    assert (array[1] == images.decode(encoded[1][1], 24)).all()


def test_it_grows_without_moving_what_it_holds(tmp_path):
    first, more = rows(4), rows(5, start=4)
    before = ImageArray.build(tmp_path, 24, first)
    held = before.positions([key for key, _ in first])
    after = ImageArray.build(tmp_path, 24, first[2:] + more)
    assert len(after) == 9
    assert (after.positions([key for key, _ in first]) == held).all()
    assert (after[held] == before[held]).all()
    assert len(before) == 4  # an open array keeps its size


def test_known_images_are_not_decoded_again(tmp_path, monkeypatch):
    encoded = rows(3)
    ImageArray.build(tmp_path, 24, encoded)
    decoded = []
    monkeypatch.setattr(images, "decode", lambda data, px: decoded.append(data) or np.zeros((px, px, 3), np.uint8))
    array = ImageArray.build(tmp_path, 24, encoded + encoded + rows(1, start=3))
    assert len(decoded) == 1
    assert len(array) == 4


def test_chunks_bound_the_memory(tmp_path, monkeypatch):
    """With room for two images the builder asks for at most two rows before it has written the last two."""
    monkeypatch.setattr("raydr.grading.arrays.CHUNK_BYTES", 2 * 24 * 24 * 3)
    size_at_read = []

    def watched():
        for row in rows(7):
            path = tmp_path / "24px.u8"
            size_at_read.append(path.stat().st_size // (24 * 24 * 3) if path.exists() else 0)
            yield row

    array = ImageArray.build(tmp_path, 24, watched(), num_threads=1)
    assert size_at_read == [0, 0, 2, 2, 4, 4, 6]
    assert len(array) == 7


def test_bytes_of_a_builder_that_died_are_overwritten(tmp_path):
    encoded = rows(5)
    ImageArray.build(tmp_path, 24, encoded[:2])
    with open(tmp_path / "24px.u8", "ab") as handle:  # pixels without digests: killed before publishing
        handle.write(b"\x07" * (24 * 24 * 3 + 100))
    (tmp_path / "24px.part").write_bytes(b"half")
    assert len(ImageArray(tmp_path, 24)) == 2
    array = ImageArray.build(tmp_path, 24, encoded)
    for pixels, (_, data) in zip(array[array.positions([key for key, _ in encoded])], encoded, strict=True):
        assert (pixels == images.decode(data)).all()


def _build(arguments):
    folder, order = arguments
    encoded = rows(12)
    array = ImageArray.build(folder, 24, [encoded[i] for i in order], num_threads=1)
    return array.positions([key for key, _ in encoded]).tolist(), os.getpid()


def test_processes_building_at_once_agree(tmp_path):
    orders = [np.random.default_rng(seed).permutation(12).tolist() for seed in range(3)]
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        answers = pool.map(_build, [(str(tmp_path), order) for order in orders], chunksize=1)
    assert answers[0][0] == answers[1][0] == answers[2][0]
    assert sorted(answers[0][0]) == list(range(12))
    assert os.path.getsize(tmp_path / "24px.u8") == 12 * 24 * 24 * 3


def test_pickled_as_a_path(tmp_path):
    array = ImageArray.build(tmp_path, 24, rows(40))
    data = pickle.dumps(array)
    assert len(data) < 500
    assert (pickle.loads(data)[np.arange(40)] == array[np.arange(40)]).all()


def test_missing_and_errors(tmp_path):
    encoded = rows(3)
    array = ImageArray.build(tmp_path, 24, encoded[:1])
    keys = [key for key, _ in encoded]
    assert array.missing([keys[1], keys[0], keys[1]]) == [keys[1]]
    with pytest.raises(MissingInput, match=f"2 of 3 images are not in the array .*{keys[1]}"):
        array.positions(keys)
    with pytest.raises(DamagedData, match="another hash"):
        ImageArray.build(tmp_path, 24, [(keys[1], encoded[2][1])])
    with pytest.raises(DamagedData, match="not a readable image"):
        ImageArray.build(tmp_path, 24, [(sha256(b"text"), b"text")])
    assert len(ImageArray(tmp_path, 24)) == 1
    assert len(ImageArray(tmp_path / "new", 32)) == 0


def test_computed_pixels_are_made_once_and_keyed_by_their_source(tmp_path):
    digests = [sha256(bytes([k])) for k in range(5)]
    asked = []

    def make(wanted):
        asked.append(list(wanted))
        return [np.full((24, 24, 3), digests.index(digest), np.uint8) for digest in wanted]

    array = ImageArray.extend(tmp_path, 24, digests[:3], make)
    array = ImageArray.extend(tmp_path, 24, [digests[1], digests[4], digests[4]], make)
    assert asked == [digests[:3], [digests[4]]]
    assert array[array.positions([digests[4], digests[0]])][:, 0, 0, 0].tolist() == [4, 0]
    assert len(array) == 4


def test_several_arrays_as_one(tmp_path):
    one = ImageArray.build(tmp_path / "a", 24, rows(3))
    other = ImageArray.extend(
        tmp_path / "b",
        24,
        [sha256(b"x"), sha256(b"y")],
        lambda wanted: [np.full((24, 24, 3), 7, np.uint8)] * len(wanted),
    )
    both = Joined(one, other)
    assert len(both) == 5
    order = np.array([4, 0, 3, 2, 0])
    expected = np.concatenate([one[np.arange(3)], other[np.arange(2)]])[order]
    np.testing.assert_array_equal(both[order], expected)
    np.testing.assert_array_equal(both.positions([rows(3)[2][0]]), [2])
    with pytest.raises(AssertionError):
        Joined(one, ImageArray.build(tmp_path / "c", 12, rows(1, 12)))
