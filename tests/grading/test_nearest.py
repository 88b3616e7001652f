import io
import pickle

import numpy as np
import pytest
from PIL import Image

from raydr.errors import UserError
from raydr.fundus import phantom
from raydr.grading import nearest

NUM = 150


@pytest.fixture(scope="module")
def photographs():
    """150 phantoms of 150 eyes, as many grades as there are."""
    return np.stack([phantom.render(5, index, index % 5, 64)[0] for index in range(NUM)])


@pytest.fixture(scope="module")
def gate(photographs):
    names = [f"DDR/{index}" for index in range(NUM)]
    return nearest.fit(photographs, np.arange(NUM), names, [None] * NUM)


def jpeg(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=75)
    return np.asarray(Image.open(buffer))


def crop(pixels, top, left):
    """Without 5 % of the side (3 px of 64), resized back."""
    return np.asarray(
        Image.fromarray(pixels[top : top + 61, left : left + 61]).resize((64, 64), Image.Resampling.BICUBIC)
    )


PLANTED = {
    "copy": lambda pixels, rng: pixels,
    "mirrored": lambda pixels, rng: pixels[:, ::-1],
    "jpeg": lambda pixels, rng: jpeg(pixels),
    "crop": lambda pixels, rng: crop(pixels, *rng.integers(0, 4, 2)),
    "all three": lambda pixels, rng: jpeg(crop(pixels, *rng.integers(0, 4, 2))[:, ::-1]),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_planted_copies_are_flagged_with_their_photograph(kind, photographs, gate):
    rng = np.random.default_rng(1)
    planted = np.stack([PLANTED[kind](pixels, rng) for pixels in photographs])
    ids, distance, flagged = gate.check(planted)
    assert flagged.mean() >= 0.99
    right = np.mean([name == f"DDR/{index}" for index, name in enumerate(ids)])
    assert right >= 0.99
    if kind == "copy":
        assert distance.max() < 1e-3


def test_fresh_eyes_pass(gate):
    fresh = np.stack([phantom.render(6, index, index % 5, 64)[0] for index in range(100)])
    _, distance, flagged = gate.check(fresh)
    assert flagged.mean() <= 0.05  # 1 % expected
    assert np.median(distance) > gate.threshold


def test_large_images_are_looked_at_small_and_their_copies_still_flagged():
    """At 256 px, as at 64: nothing that the gate sees is lost by shrinking, and no pixel beyond MOST is paid for."""
    names, rng = [f"DDR/{index}" for index in range(40)], np.random.default_rng(2)
    known, fresh = (
        np.stack([phantom.render(seed, index, index % 5, 256)[0] for index in range(40)]) for seed in (5, 6)
    )
    assert all(view.shape == (40, nearest.MOST, nearest.MOST, 3) for view in nearest.views(known))
    gate = nearest.fit(known, np.arange(40), names, [None] * 40)
    for hidden in (lambda x: x, lambda x: x[:, ::-1], lambda x: jpeg(enlarged(x, *rng.integers(0, 12, 2)))):
        ids, _, flagged = gate.check(np.stack([hidden(pixels) for pixels in known]))
        assert flagged.all()
        assert ids == names
    assert gate.check(fresh)[2].mean() <= 0.1


def enlarged(pixels, top, left):
    """Without 5 % of the side of 256 px, resized back."""
    return np.asarray(Image.fromarray(pixels[top : top + 244, left : left + 244]).resize((256, 256)))


def test_the_same_eye_at_another_grade_is_a_copy_too(gate):
    """The healthy eyes with the few lesions of grade 1: whose eye it is counts, not its grade."""
    healthy = range(0, NUM, 5)
    ids, _, flagged = gate.check(np.stack([phantom.render(5, index, 1, 64)[0] for index in healthy]))
    assert flagged.mean() >= 0.9
    assert np.mean([name == f"DDR/{index}" for name, index in zip(ids, healthy, strict=True)]) >= 0.9


def pixel_space(images):
    return images.reshape(len(images), -1).astype(np.float32)


def test_distances_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    images, samples = (rng.integers(0, 256, (num, 20, 20, 3), dtype=np.uint8) for num in (6, 3))
    distance, position = nearest.search(samples, pixel_space(images), pixel_space)
    for row, sample in enumerate(samples):
        table = [
            [np.sqrt(np.mean((view[0].astype(float) - image) ** 2)) for image in images]
            for view in nearest.views(sample[None])
        ]
        assert distance[row] == pytest.approx(np.min(table), rel=1e-5)
        assert position[row] == np.argmin(np.min(table, axis=0))


def test_views():
    image = np.zeros((1, 40, 40, 3), np.uint8)
    image[0, :, :20] = 200
    versions = nearest.views(image)
    assert len(versions) == 12
    assert versions[0] is image
    assert (versions[6] == image[:, :, ::-1]).all()
    # 5 % of 40 px: the corner view leaves two black columns and rows at the far side.
    assert (versions[2][0, :38, :18] == 200).all()
    assert versions[2][0, 38:].max() == versions[2][0, :, 38:].max() == 0


def test_the_threshold_is_set_by_strangers_only():
    """Two patients, two near-identical photographs each: the distance between patients sets the threshold."""
    rng = np.random.default_rng(0)
    eyes = rng.integers(0, 256, (2, 20, 20, 3), dtype=np.uint8)
    images = np.stack([eyes[0], eyes[0] ^ 1, eyes[1], eyes[1] ^ 1])
    names, patients = list("abcd"), ["p", "p", "q", "q"]
    with_patients = nearest.fit(images, np.arange(4), names, patients, pixel_space)
    without = nearest.fit(images, np.arange(4), names, [None] * 4, pixel_space)
    assert without.threshold == pytest.approx(1.0, rel=1e-3)  # one grey level apart
    assert with_patients.threshold > 50
    with pytest.raises(UserError, match="at least two patients"):
        nearest.fit(images, np.arange(2), names[:2], patients[:2], pixel_space)


def test_structure_ignores_tint_size_and_flatness(photographs):
    one = nearest.structure(photographs[:4])
    tinted = np.clip(photographs[:4] * np.array([0.9, 1.1, 1.0]) + 8, 0, 255).astype(np.uint8)
    large = photographs[:4].repeat(2, axis=1).repeat(2, axis=2)
    assert one.shape == (4, 1024)
    np.testing.assert_allclose((one**2).mean(1), 1, rtol=1e-4)
    for other in (tinted, large):
        correlation = (one * nearest.structure(other)).mean(1)
        assert correlation.min() > 0.9
    assert (nearest.structure(np.zeros((1, 64, 64, 3), np.uint8)) == 0).all()


def test_a_gate_travels(gate, photographs):
    copy = pickle.loads(pickle.dumps(gate))
    assert copy.check(photographs[:3])[0] == ["DDR/0", "DDR/1", "DDR/2"]
