import numpy as np
import pytest
import torch

from raydr.grading import pixels


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_to_input_keeps_values_and_never_transposes():
    stored = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8))
    images = pixels.to_input(stored, 8)
    torch.testing.assert_close(images, stored.permute(0, 3, 1, 2).float() / 255)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_resize_of_a_constant_is_that_constant():
    stored = torch.full((2, 40, 40, 3), 51, dtype=torch.uint8)
    torch.testing.assert_close(pixels.to_input(stored, 32), torch.full((2, 3, 32, 32), 0.2))


@pytest.mark.parametrize("kind", ["light", "paper"])
def test_augmentation_is_decided_by_the_generator(kind):
    images = torch.rand(6, 3, 16, 16, generator=seeded(9))
    one, same, other = (pixels.augment(images, kind, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.shape == images.shape
    assert one.min() >= 0
    assert one.max() <= 1


def test_none_changes_nothing():
    images = torch.rand(2, 3, 8, 8)
    assert pixels.augment(images, "none", seeded()) is images


def test_light_moves_whole_pixels_only(monkeypatch):
    """Without jitter every value of the output is a value of the input, and all eight symmetries occur."""
    for name in ("BRIGHTNESS", "CONTRAST", "COLOUR"):
        monkeypatch.setattr(pixels, name, 0.0)
    image = torch.zeros(1, 3, 16, 16)
    image[0, :, 4, 6] = 0.5  # off both axes and both diagonals
    out = pixels.augment(image.expand(400, -1, -1, -1), "light", seeded(3))
    assert set(out.unique().tolist()) == {0.0, 0.5}
    where = out[:, 0].flatten(1).argmax(1)
    rows, columns = where // 16, where % 16
    # Shifts reach one pixel (6 % of 16), so the eight images of (4, 6) stay apart.
    expected = {(4, 6), (4, 9), (11, 6), (11, 9), (6, 4), (9, 4), (6, 11), (9, 11)}
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        assert any(abs(row - r) <= 1 and abs(column - c) <= 1 for r, c in expected), (row, column)
    for r, c in expected:
        assert any(abs(a - r) <= 1 and abs(b - c) <= 1 for a, b in zip(rows.tolist(), columns.tolist(), strict=True)), (
            r,
            c,
        )


def test_light_jitter_stays_near_the_image():
    image = torch.full((200, 3, 8, 8), 0.5)
    out = pixels.augment(image, "light", seeded(1))
    assert 0.4 < out.min() < 0.46
    assert 0.54 < out.max() < 0.6


def test_paper_augmentation_rotates_and_keeps_the_centre():
    """A centred disc is unchanged by rotation and flips; the crop moves it by less than its window allows."""
    line = torch.linspace(-1, 1, 65)
    disc = ((line[:, None] ** 2 + line[None] ** 2) < 0.25).float().expand(50, 3, 65, 65)
    out = pixels.augment(disc, "paper", seeded(4))
    share = out.mean(dim=(1, 2, 3)) / disc[0].mean()
    # Windows of .8 to 1 of the area show the disc 1 to 1.25 times as large (clipped windows, 1 to 1.5).
    assert share.min() > 0.95
    assert share.max() < 1.55
    assert share.std() > 0.02
