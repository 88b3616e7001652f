import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from raydr.diffusion.latents import LatentCache, encode
from raydr.fundus.phantom import render

PX = 32


@pytest.fixture(scope="module")
def pixels():
    return np.stack([render(1, index, index % 5, PX)[0] for index in range(5)])


def test_moments_are_the_vaes(base, pixels):
    events = []
    cache = encode(base, lambda part: pixels[part], 5, batch=2, on_event=events.append)
    assert cache.mean.shape == cache.std.shape == (5, 2, 6, PX // 2, PX // 2)
    assert len(cache) == 5
    assert [event["done"] for event in events] == [2, 4, 5]
    for mirror in (0, 1):
        image = pixels[3][:, ::-1].copy() if mirror else pixels[3]
        posterior = base.vae.encode(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1).latent_dist
        scale = base.vae.config.scaling_factor
        torch.testing.assert_close(cache.mean[3, mirror], posterior.mean[0] * scale, rtol=0, atol=1e-5)
        torch.testing.assert_close(cache.std[3, mirror], posterior.std[0] * scale, rtol=0, atol=1e-5)


def test_a_cache_comes_back_bit_for_bit(base, pixels, tmp_path):
    cache = encode(base, lambda part: pixels[part], 5)
    path = tmp_path / "latents" / "train.safetensors"
    cache.save(path)
    again = LatentCache.load(path)
    assert torch.equal(again.mean, cache.mean)
    assert torch.equal(again.std, cache.std)
    assert [entry.name for entry in path.parent.iterdir()] == ["train.safetensors"]
    assert load_file(path)["mean"].dtype == torch.float32


def test_samples_are_of_the_row_and_the_mirror_asked_for():
    mean = torch.arange(12.0).view(3, 2, 2, 1, 1)
    cache = LatentCache(mean, torch.full_like(mean, 0.5))
    noise = torch.ones(2, 2, 1, 1)
    samples = cache.sample([2, 0], [1, 0], noise)
    assert samples.flatten().tolist() == [10.5, 11.5, 0.5, 1.5]
