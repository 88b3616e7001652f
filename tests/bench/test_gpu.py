"""The GPU benchmark, on the CPU and the small base: every number it would print is there, its work counted right."""

import dataclasses

import pytest
import torch

from raydr.bench import flops, gpu, results
from raydr.config import Finetune, Grader, Sampler
from raydr.diffusion.model import load_base
from raydr.errors import UserError

CACHED, UNCACHED = "LoRA, cached latents, 1 pairs", "LoRA, uncached, 1 pairs"


@pytest.fixture(scope="module")
def base():
    return load_base("phantom")


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="needs a GPU"):
        gpu.run(results.Result({}))


def test_the_shapes_are_those_that_are_counted():
    base = gpu.sd15("meta", "bf16")
    assert sum(p.numel() for p in base.unet.parameters()) == 859_520_964  # as published
    assert base.latent_factor == 8


def test_every_case_gives_a_rate_and_its_share_of_the_peak(base):
    result = results.Result({})
    sampler = Sampler(steps=2, batch=2)
    per_second = gpu.generation(result, base, sampler, 64, 1e12, "eager")
    from raydr.diffusion.sampler import PromptCache, decode, sample_latents

    prompts = PromptCache(base)

    def once():
        return decode(base, sample_latents(base, prompts, "an image", [0, 1], sampler, 64), 2)

    once()  # embeds the prompts: no part of an image's work, and .06 % more, enough to round an MFU the other way
    whole = flops.count(once)
    assert whole > 1e9
    note = result.values["generation, eager"]["note"]
    assert note == f"{whole / 2 / 1e12:.3g} TFLOP each, MFU {whole / 2 * per_second / 1e12:.1%}"

    gpu.scoring(result, [Grader(backbone="test_resnet", px=32)] * 2, 32, 4, "cpu", 1e12)
    config = Finetune(grades=(3,), kinds=("plain",), batch_pairs=1)
    cached = gpu.tuning(result, base, config, 4, 1e12, steps=1)
    uncached = gpu.tuning(result, base, config, 4, 1e12, steps=1, live=True)
    names = {"generation, eager", "scoring, 2 graders", CACHED, UNCACHED}
    assert set(result.values) == names
    work = [float(result.values[name]["note"].split()[0]) for name in (UNCACHED, CACHED)]
    encoder = flops.count(lambda: base.vae.encode(torch.zeros(1, 3, 64, 64))) / 1e12
    assert 0.9 * encoder < work[0] - work[1] < 1.5 * encoder  # and the words of the first step
    assert cached > 0 < uncached
    assert all(item["value"] > 0 and "MFU" in item["note"] for item in result.values.values())
    # The adapter is off again: what comes after measures the plain base.
    assert not any("lora" in name for name, _ in base.unet.named_parameters())


def test_what_is_compiled_is_what_the_generators_compile_and_its_work_is_counted_before(base, monkeypatch):
    order = []
    monkeypatch.setattr(gpu, "compile_parts", lambda parts, cache: order.append(parts is base))
    counted = flops.count
    monkeypatch.setattr(flops, "count", lambda work: order.append("counted") or counted(work))
    sampler = Sampler(steps=1, batch=1, compiled=True)
    gpu.generation(results.Result({}), base, sampler, 64, 1e12, "compiled")
    assert order == ["counted", "counted", True]


def test_a_wordless_base_is_a_base(base):
    silent = gpu.Wordless(None, None, base.vae, base.unet, base.scheduler)
    words = silent.embed(["a", "b"])
    assert words.shape == (2, 77, base.unet.config.cross_attention_dim)
    assert dataclasses.replace(silent, unet=base.unet).embed(["a", "b"]).equal(words)
