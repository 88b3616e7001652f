import copy
import dataclasses

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from diffusion.small import CONFIG, PX
from raydr.config import Sampler
from raydr.diffusion import lora
from raydr.diffusion.model import to_uint8
from raydr.diffusion.sampler import PromptCache, decode, noise_for, sample_latents
from raydr.errors import DamagedData, MissingInput, UserError

PROMPT, SEEDS = "A color fundus image from DDR dataset in mild DR stage.", (5, 6)


@torch.no_grad()
def predict(unet):
    torch.manual_seed(0)
    noisy, words = torch.randn(2, 6, PX // 2, PX // 2), torch.randn(2, 32, 64)
    return unet(noisy, torch.tensor([10, 700]), words).sample


def weights(unet):
    return {name: value.clone() for name, value in unet.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def trained(base, folder, seed=3, config=CONFIG):
    """Save an adapter whose B is no longer zero; returns what the adapted UNet predicts, and takes it off."""
    lora.add(base.unet, config, seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in base.unet.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.03)  # at .3 the attention saturates and rounding grows
    predicted = predict(base.unet)
    lora.save(base.unet, folder)
    lora.remove(base.unet)
    return predicted


def test_a_fresh_adapter_equals_the_base_bit_for_bit(base):
    before, stored = predict(base.unet), weights(base.unet)
    parameters = lora.add(base.unet, CONFIG, seed=1)
    assert torch.equal(predict(base.unet), before)
    # Rank 2 on q, k, v and out of self- and cross-attention; only the adapter may learn, in float32.
    assert len(parameters) == len(lora.state(base.unet)) == sum(p.requires_grad for p in base.unet.parameters())
    assert {p.dtype for p in parameters} == {torch.float32}
    assert any(p.std() > 0 for p in parameters), "A is gaussian"
    lora.remove(base.unet)
    assert equal(weights(base.unet), stored)
    assert not any(p.requires_grad for p in base.unet.parameters())


def test_the_seed_makes_the_adapter_and_leaves_the_process_alone(base):
    torch.manual_seed(9)
    expected = torch.rand(1)
    torch.manual_seed(9)
    states = []
    for seed in (1, 1, 2):
        lora.add(base.unet, CONFIG, seed)
        states.append(weights(base.unet) | lora.state(base.unet))
        lora.remove(base.unet)
    assert equal(states[0], states[1])
    assert not equal(states[0], states[2])
    assert torch.equal(torch.rand(1), expected)


def test_a_bf16_base_has_an_fp32_adapter(base):
    base.unet.to(torch.bfloat16)
    assert {p.dtype for p in lora.add(base.unet, CONFIG, 1)} == {torch.float32}


def test_a_misspelt_target_is_named(base):
    with pytest.raises(UserError, match="'to_kk'"):
        lora.add(base.unet, dataclasses.replace(CONFIG, targets=("to_q", "to_kk")), 1)
    assert not any("lora" in name for name, _ in base.unet.named_parameters())


@pytest.mark.parametrize("alpha", [2, 4])
def test_fused_weights_predict_what_peft_does(base, tmp_path, alpha):
    plain = predict(base.unet)
    expected = trained(base, tmp_path, config=dataclasses.replace(CONFIG, alpha=alpha))
    assert (expected - plain).abs().max() > 0.05, "the adapter must matter"
    lora.Fused(base.unet).switch(tmp_path)
    torch.testing.assert_close(predict(base.unet), expected, rtol=0, atol=1e-5)


def test_adapted_convolutions_are_fused_too(base, tmp_path):
    """SD 1.x's proj_in is a 1 x 1 convolution, its resnets' are 3 x 3: LoRAs of others adapt them."""
    config = dataclasses.replace(CONFIG, targets=("to_q", "proj_in", "conv1"))
    assert base.unet.get_parameter("down_blocks.1.attentions.0.proj_in.weight").ndim == 4
    plain = predict(base.unet)
    expected = trained(base, tmp_path, config=config)
    assert (expected - plain).abs().max() > 0.05, "the adapter must matter"
    lora.Fused(base.unet).switch(tmp_path)
    torch.testing.assert_close(predict(base.unet), expected, rtol=0, atol=1e-5)


def test_switching_back_and_forth_is_exact(base, tmp_path):
    stored = weights(base.unet)
    for seed in (3, 4):
        trained(base, tmp_path / str(seed), seed)
    fused = lora.Fused(base.unet)
    fused.switch(tmp_path / "3")
    first = weights(base.unet)
    for place in ("4", None, "3", "4", "3"):
        fused.switch(tmp_path / place if place else None)
    assert equal(weights(base.unet), first)
    fused.switch(None)
    assert equal(weights(base.unet), stored)


def test_adapters_of_other_layers_take_turns(base, tmp_path):
    """The second touches layers that the first does not, and the other way round."""
    stored = weights(base.unet)
    for name, targets in (("a", ("to_q",)), ("b", ("to_v",))):
        trained(base, tmp_path / name, config=dataclasses.replace(CONFIG, targets=targets))
    fused = lora.Fused(base.unet)
    fused.switch(tmp_path / "b")
    alone = weights(base.unet)
    fused.switch(tmp_path / "a")
    fused.switch(tmp_path / "b")
    assert equal(weights(base.unet), alone)
    fused.switch(None)
    assert equal(weights(base.unet), stored)


def ours(base, sampler=None):
    """uint8 (2, px, px, 3)"""
    sampler = sampler or Sampler(steps=3, guidance=2.0, batch=2)
    latents = sample_latents(base, PromptCache(base), PROMPT, SEEDS, sampler, PX)
    return decode(base, latents, 2)


def theirs(folder, lora_folder):
    """The same two images from a stock diffusers pipeline."""
    from diffusers import DPMSolverMultistepScheduler

    pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, safety_checker=None)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(
        pipe.scheduler.config, algorithm_type="dpmsolver++", solver_order=2
    )
    pipe.set_progress_bar_config(disable=True)
    if lora_folder:
        pipe.load_lora_weights(lora_folder)
    done = pipe(
        [PROMPT] * 2, latents=noise_for(SEEDS, (6, PX // 2, PX // 2)), num_inference_steps=3, guidance_scale=2.0,
        height=PX, width=PX, output_type="pt",
    )  # fmt: skip
    return to_uint8(done.images * 2 - 1), pipe


def test_a_stock_diffusers_pipeline_reads_our_file(base, folder, tmp_path):
    plain = ours(base)
    trained(base, tmp_path)
    lora.Fused(base.unet).switch(tmp_path)
    adapted = ours(base)
    images, _ = theirs(folder, tmp_path)
    difference = (images.int() - adapted.int()).abs()
    assert difference.max() <= 1, "rounding of the fused weights moves a pixel by one step at most"
    assert difference.float().mean() < 0.01
    assert (plain.int() - adapted.int()).abs().float().mean() > 1, "the adapter must be visible"


@pytest.mark.parametrize("layout", ["diffusers", "peft"])
def test_files_that_diffusers_writes_are_read(base, folder, tmp_path, layout):
    """`save_lora_weights` of a pipeline (peft's names), and what diffusers' training scripts convert it to."""
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft.utils import get_peft_model_state_dict

    config = dataclasses.replace(CONFIG, alpha=CONFIG.rank)  # without metadata alpha is taken to be the rank
    expected = trained(base, tmp_path / "ours", config=config)
    _, pipe = theirs(folder, tmp_path / "ours")
    state = get_peft_model_state_dict(pipe.unet, adapter_name=pipe.get_active_adapters()[0])
    if layout == "diffusers":
        state = convert_state_dict_to_diffusers(state)
    StableDiffusionPipeline.save_lora_weights(tmp_path / "theirs", unet_lora_layers=state)
    lora.Fused(base.unet).switch(tmp_path / "theirs")
    torch.testing.assert_close(predict(base.unet), expected, rtol=0, atol=1e-5)


def test_alpha_in_the_metadata_is_heeded(base, tmp_path):
    trained(base, tmp_path, config=dataclasses.replace(CONFIG, rank=2, alpha=6))
    layers = lora.read(tmp_path)
    assert {scale for _, _, scale in layers.values()} == {3}
    assert all(down.shape[0] == up.shape[1] == 2 for down, up, _ in layers.values())
    keys = load_file(tmp_path / lora.WEIGHTS)
    assert all(key.startswith("unet.") and key.endswith((".lora.up.weight", ".lora.down.weight")) for key in keys)


def test_another_base_is_refused_and_nothing_changes(base, tmp_path):
    trained(base, tmp_path / "good")
    tensors = load_file(tmp_path / "good" / lora.WEIGHTS)
    # The last layer is too wide: the layers before it fit.
    name = sorted(tensors)[-1]
    layer = name.removesuffix(".lora.up.weight")
    tensors[name] = torch.zeros(tensors[name].shape[0] + 1, tensors[name].shape[1])
    (tmp_path / "bad").mkdir()
    save_file(tensors, tmp_path / "bad" / lora.WEIGHTS)
    fused = lora.Fused(base.unet)
    fused.switch(tmp_path / "good")
    before = weights(base.unet)
    with pytest.raises(UserError, match="another base") as caught:
        fused.switch(tmp_path / "bad")
    assert layer.removeprefix("unet.") in str(caught.value)
    assert equal(weights(base.unet), before)
    fused.switch(None)
    fused.switch(tmp_path / "good")
    assert equal(weights(base.unet), before)


def test_a_folder_without_a_lora(base, tmp_path):
    with pytest.raises(MissingInput, match="raydr finetune"):
        lora.Fused(base.unet).switch(tmp_path)


@pytest.mark.parametrize("tensors", [{"something": torch.zeros(2)}, {"unet.a.lora.down.weight": torch.zeros(2, 2)}])
def test_a_file_that_is_no_lora(tmp_path, tensors):
    save_file(tensors, tmp_path / lora.WEIGHTS)
    with pytest.raises(DamagedData, match="no complete LoRA"):
        lora.read(tmp_path)


def test_a_whole_unet_is_switched_in_and_out(base, tmp_path):
    stored = weights(base.unet)
    other = copy.deepcopy(base.unet)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.01)
    other.save_pretrained(tmp_path / "full" / "unet")
    trained(base, tmp_path / "lora")
    fused = lora.Fused(base.unet)
    fused.switch(tmp_path / "lora")
    adapted = weights(base.unet)
    fused.switch(tmp_path / "full")
    assert equal(weights(base.unet), weights(other))
    fused.switch(tmp_path / "lora")
    assert equal(weights(base.unet), adapted)
    fused.switch(None)
    assert equal(weights(base.unet), stored)


def test_a_whole_unet_of_another_base_is_refused(base, tmp_path):
    values = base.unet.state_dict() | {"conv_in.bias": torch.zeros(3)}
    (tmp_path / "unet").mkdir()
    save_file(values, tmp_path / lora.FULL)
    with pytest.raises(UserError, match=r"conv_in\.bias"):
        lora.Fused(base.unet).switch(tmp_path)
