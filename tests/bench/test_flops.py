"""Counted work against what the shapes say."""

import pytest
import torch

from raydr.bench import flops


def test_two_flops_a_multiply_add_and_the_backward_pass_too():
    a = torch.randn(8, 16, requires_grad=True)
    b = torch.randn(16, 4)
    assert flops.count(lambda: a @ b) == 2 * 8 * 16 * 4
    assert flops.count(lambda: (a @ b).sum().backward()) == 2 * 2 * 8 * 16 * 4  # b needs no gradient


def test_stable_diffusion_without_its_weights():
    found = flops.sd15()
    # GFLOP at 512 px, batch 1, as published for these shapes.
    assert {name: round(value / 1e9) for name, value in found.items()} == {
        "unet": 803,
        "vae_decode": 2515,
        "vae_encode": 1117,
        "text": 13,
        "lora_step": 1718,
    }
    assert flops.image_flops(found, steps=30) / 1e12 == pytest.approx(50.7, abs=0.05)
    assert flops.image_flops({"unet": 10, "vae_decode": 7}, steps=3, guided=False) == 37


def test_the_peak_is_a_rate_of_this_machine():
    rate = flops.peak_flops("cpu", torch.float32, repeats=2)
    assert 1e8 < rate < 1e14
