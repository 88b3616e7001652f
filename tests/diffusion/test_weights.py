"""What fine-tuning learns beside a UNet's LoRA: running mean, half precision, text encoder."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from diffusion.small import CONFIG, PX, trainer
from diffusion.test_lora import PROMPT, SEEDS, equal, ours, theirs
from diffusion.test_training import assert_same, assert_same_state, finished, weights
from raydr.config import Sampler
from raydr.diffusion import lora
from raydr.diffusion.sampler import PromptCache, decode, sample_latents
from raydr.diffusion.state import State
from raydr.errors import UserError
from raydr.prompts import instance_prompt

TEXT = dataclasses.replace(CONFIG, train_text_encoder=True, learning_rate=1e-2)


def resumed(shared, config, cut, **options):
    """A run that was cut at step `cut` and went on from its bytes on a fresh base."""
    first, _ = trainer(copy.deepcopy(shared), config=config, **options)
    first.run(cut)
    data = first.state().to_bytes()
    second, _ = trainer(copy.deepcopy(shared), config=config, **options)
    second.restore(State.from_bytes(data))
    second.run()
    return second


# -- running mean ---------------------------------------------------------------------------------


def test_the_running_mean_by_hand(base):
    """Decay min(.9, (1 + step) / (10 + step)) over five steps, of the last of the parameters."""
    run, _ = trainer(base, config=dataclasses.replace(CONFIG, ema=0.9))
    mean = run.weights.parameters[-1].detach().clone()
    for step in range(CONFIG.steps):
        run.run(step + 1)
        decay = min(0.9, (1 + step) / (10 + step))
        mean = decay * mean + (1 - decay) * run.weights.parameters[-1].detach()
    torch.testing.assert_close(run.weights.mean[-1], mean)
    assert not torch.equal(run.weights.mean[-1], run.weights.parameters[-1])


def test_the_mean_is_what_is_validated_and_saved_not_what_is_trained(shared, tmp_path):
    config = dataclasses.replace(CONFIG, ema=0.5, learning_rate=3e-2)
    run, _ = finished(copy.deepcopy(shared), config=config)
    plain, _ = finished(copy.deepcopy(shared), config=dataclasses.replace(config, ema=0.0))
    assert_same(weights(run), weights(plain))  # training never sees its mean
    assert run.validation_loss() != plain.validation_loss()
    assert_same(weights(run), weights(plain))  # and has its weights back after a look
    run.weights.save(tmp_path)
    saved = lora.read(tmp_path)
    ups = [up for name, (_, up, _) in saved.items()]
    means = [value for p, value in zip(run.weights.parameters, run.weights.mean, strict=True) if p.shape[1] == 2]
    assert sorted(float(up.abs().sum()) for up in ups) == pytest.approx(
        sorted(float(value.abs().sum()) for value in means)
    )


def test_a_mean_survives_a_cut(shared):
    config = dataclasses.replace(CONFIG, ema=0.9)
    whole, _ = finished(copy.deepcopy(shared), config=config, kind="ecc")
    again = resumed(shared, config, 3, kind="ecc")
    assert_same_state(again.state(), whole.state())
    assert all(torch.equal(a, b) for a, b in zip(again.weights.mean, whole.weights.mean, strict=True))


# -- half precision ---------------------------------------------------------------------------------


def half(shared):
    base = copy.deepcopy(shared)
    for part in (base.unet, base.vae, base.text_encoder):
        part.to(torch.float16)
    return base


def test_fp16_learns_what_fp32_does(shared):
    config = dataclasses.replace(CONFIG, precision="fp16")
    run, events = finished(half(shared), config=config, kind="ecc")
    _, exact = finished(copy.deepcopy(shared), kind="ecc")
    assert {p.dtype for p in run.weights.parameters} == {torch.float32}
    for event, other in zip(events, exact, strict=True):
        if event["event"] == "step":
            assert event["instance"] == pytest.approx(other["instance"], rel=0.02)
    assert events[0]["grad_norm"] == pytest.approx(exact[0]["grad_norm"], rel=0.05)


def test_an_overflow_halves_the_scale_and_skips_that_update(shared):
    run, _ = trainer(half(shared), config=dataclasses.replace(CONFIG, precision="fp16"))
    run.run(1)
    before, scale = weights(run), run.weights.scale
    run.weights.scale = 2.0**40  # beyond half precision's 65,504: every gradient overflows
    run.run(2)
    assert run.weights.scale == 2.0**39
    assert_same(weights(run), before)
    run.weights.scale = scale
    run.run(3)
    assert not torch.equal(next(iter(weights(run).values())), next(iter(before.values())))


def test_the_scale_grows_again_and_survives_a_cut(shared, monkeypatch):
    from raydr.diffusion import weights as module

    monkeypatch.setattr(module, "GROW_AFTER", 2)
    config = dataclasses.replace(CONFIG, precision="fp16", steps=4)
    run, _ = finished(half(shared), config=config)
    assert run.weights.scale == module.FIRST_SCALE * 4
    first, _ = trainer(half(shared), config=config)
    first.run(3)
    second, _ = trainer(half(shared), config=config)
    second.restore(State.from_bytes(first.state().to_bytes()))
    second.run()
    assert second.weights.scale == run.weights.scale
    assert_same_state(second.state(), run.state())


def test_a_loss_that_is_no_number_stops_fp16_too(shared):
    run, _ = trainer(half(shared), config=dataclasses.replace(CONFIG, precision="fp16"))
    with torch.no_grad():
        next(p for p in run.weights.parameters if p.shape[0] == 2).fill_(1e30)
        for name, p in run.base.unet.named_parameters():
            if "lora_B" in name:
                p.fill_(1e30)
    with pytest.raises(UserError, match="no number at step 1"):
        run.run()


# -- text encoder ---------------------------------------------------------------------------------


def test_a_text_encoders_adapter_changes_nothing_at_first_and_learns_then(shared):
    base = copy.deepcopy(shared)
    before = base.embed([PROMPT])
    run, _ = trainer(base, config=TEXT)
    assert torch.equal(base.embed([PROMPT]), before)
    text = [name for name in weights(run) if name.startswith(lora.TEXT)]
    assert len(text) == 2 * 4 * 2  # A and B of four projections in two layers
    start = weights(run)
    run.run()
    assert all(not torch.equal(weights(run)[name], start[name]) for name in text)
    assert (base.embed([PROMPT]) - before).abs().max() > 1e-4
    run.close()
    assert torch.equal(base.embed([PROMPT]), before)
    assert equal(base.text_encoder.state_dict(), shared.text_encoder.state_dict())
    assert not any(p.requires_grad for p in base.text_encoder.parameters())


def test_a_text_encoders_adapter_survives_a_cut(shared):
    whole, _ = finished(copy.deepcopy(shared), config=TEXT, kind="ecc")
    assert_same_state(resumed(shared, TEXT, 3, kind="ecc").state(), whole.state())


def test_embeddings_known_beforehand_are_used_unless_the_text_encoder_learns(base):
    known = {instance_prompt("DDR", 1): torch.zeros(32, 64)}
    run, _ = trainer(base, embeddings=known)
    assert torch.equal(run.prompts[instance_prompt("DDR", 1)], torch.zeros(32, 64))
    run.close()
    run, _ = trainer(base, config=TEXT, embeddings=known)
    assert not torch.equal(run.prompts[instance_prompt("DDR", 1)], torch.zeros(32, 64))


def test_a_stock_pipeline_makes_the_same_pixels_with_both_adapters(shared, folder, tmp_path):
    base = copy.deepcopy(shared)
    plain = ours(base)
    run, _ = finished(base, config=dataclasses.replace(TEXT, alpha=8))
    run.weights.save(tmp_path)
    run.close()
    fused = lora.Fused(base.unet, base.text_encoder)
    assert fused.switch(tmp_path)
    adapted = ours(base)
    images, pipe = theirs(folder, tmp_path)
    assert (images.int() - adapted.int()).abs().max() <= 1
    assert (plain.int() - adapted.int()).abs().float().mean() > 1, "the adapter must be visible"
    assert pipe.text_encoder.peft_config["default_0"].lora_alpha == 8
    # Without it the text encoder is the base's again, bit for bit.
    assert fused.switch(None)
    assert equal(base.text_encoder.state_dict(), shared.text_encoder.state_dict())
    assert not fused.switch(None)


@pytest.mark.parametrize("nested", [True, False])
def test_a_text_encoders_lora_of_diffusers_is_read(shared, folder, tmp_path, nested):
    """As diffusers' training scripts write it, with and without the `text_model.` of older transformers."""
    from safetensors.torch import load_file

    base = copy.deepcopy(shared)
    run, _ = finished(base, config=dataclasses.replace(TEXT, alpha=TEXT.rank))
    run.weights.save(tmp_path / "ours")
    run.close()
    tensors = load_file(tmp_path / "ours" / lora.WEIGHTS)
    unet = {name.removeprefix(lora.UNET): value for name, value in tensors.items() if name.startswith(lora.UNET)}
    text = {name.removeprefix(lora.TEXT): value for name, value in tensors.items() if name.startswith(lora.TEXT)}
    assert all(name.startswith("text_model.encoder.layers.") for name in text)
    if not nested:
        text = {name.removeprefix("text_model."): value for name, value in text.items()}
    StableDiffusionPipeline.save_lora_weights(tmp_path / "theirs", unet_lora_layers=unet, text_encoder_lora_layers=text)
    one, other = (copy.deepcopy(shared) for _ in range(2))
    lora.Fused(one.unet, one.text_encoder).switch(tmp_path / "ours")
    lora.Fused(other.unet, other.text_encoder).switch(tmp_path / "theirs")
    assert equal(one.unet.state_dict(), other.unet.state_dict())
    assert equal(one.text_encoder.state_dict(), other.text_encoder.state_dict())


def test_candidates_come_from_the_text_encoder_as_it_is_now(shared):
    """An embedding kept from before an update would sample another model."""
    run, _ = trainer(copy.deepcopy(shared), config=TEXT)
    run.sample(1, SEEDS, 2, 2.0, 2)
    run.run()
    images = run.sample(1, SEEDS, 2, 2.0, 2)
    with run.weights.averaged():
        latents = sample_latents(
            run.base, PromptCache(run.base), instance_prompt("DDR", 1), SEEDS, Sampler(steps=2, batch=2), PX
        )
    np.testing.assert_array_equal(images, decode(run.base, latents, 2).numpy())


def test_the_whole_unet_and_a_text_lora_exclude_each_other():
    with pytest.raises(UserError, match="choose one of them"):
        dataclasses.replace(CONFIG, full=True, train_text_encoder=True)
