"""Bases of the 2.x line: velocity prediction, linear projections, heads per block, a text encoder of its own shape."""

import copy
import json
import shutil

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

from diffusion.small import trainer
from diffusion.test_lora import ours, theirs
from diffusion.test_training import assert_same_state, finished
from raydr.config import Sampler
from raydr.diffusion import lora
from raydr.diffusion.model import check_base, load_base
from raydr.errors import UserError


@pytest.fixture(scope="module")
def second(folder, tmp_path_factory):
    """The thin base with what Stable Diffusion 2.1 has and 1.5 has not."""
    path = tmp_path_factory.mktemp("second") / "base"
    shutil.copytree(folder, path)
    old = UNet2DConditionModel.from_pretrained(path, subfolder="unet")
    torch.manual_seed(5)
    # 2.1: attention_head_dim (5, 10, 20, 20), use_linear_projection, upcast_attention.
    unet = UNet2DConditionModel.from_config(
        {**old.config, "attention_head_dim": (2, 4, 4), "use_linear_projection": True, "upcast_attention": True}
    )
    unet.save_pretrained(path / "unet")
    DDPMScheduler.from_pretrained(path, subfolder="scheduler", prediction_type="v_prediction").save_pretrained(
        path / "scheduler"
    )
    return path


@pytest.fixture(scope="module")
def velocity(second):
    return load_base(str(second))


def test_the_velocity_is_what_is_learnt(velocity):
    """Loss of step 0 by hand: v = sqrt(a) eps - sqrt(1 - a) x0."""
    base = copy.deepcopy(velocity)
    run, events = trainer(base)
    latents, prompts, noise, timesteps = run._batch([0, 1], has_pool=False)
    alpha = base.scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    noisy, target = (
        alpha.sqrt() * latents + (1 - alpha).sqrt() * noise,
        alpha.sqrt() * noise - (1 - alpha).sqrt() * latents,
    )
    with torch.no_grad():
        error = (base.unet(noisy, timesteps, base.embed(prompts)).sample - target).square().flatten(1).mean(1)
    run.run(1)
    assert events[0]["instance"] == pytest.approx(error[:2].mean().item(), rel=1e-5)
    assert events[0]["prior"] == pytest.approx(error[2:].mean().item(), rel=1e-5)


def test_it_is_trained_resumed_and_sampled_like_the_first(velocity, second, tmp_path):
    run, events = finished(copy.deepcopy(velocity), kind="ecc")
    other, _ = finished(copy.deepcopy(velocity), kind="ecc")
    assert_same_state(run.state(), other.state())
    assert events[-1]["ecc"] > 0
    run.weights.save(tmp_path)
    base = copy.deepcopy(velocity)
    lora.Fused(base.unet, base.text_encoder).switch(tmp_path)
    images, _ = theirs(second, tmp_path)
    assert (images.int() - ours(base).int()).abs().max() <= 1


@pytest.mark.parametrize("name", ["dpm++", "ddim"])
def test_a_velocity_base_is_not_sampled_as_noise(velocity, name):
    right = copy.deepcopy(velocity)
    wrong = copy.deepcopy(velocity)
    wrong.scheduler = DDPMScheduler.from_config(wrong.scheduler.config, prediction_type="epsilon")
    sampler = Sampler(name, steps=3, guidance=2.0, batch=2)
    assert (ours(right, sampler).int() - ours(wrong, sampler).int()).abs().max() > 5


@pytest.mark.parametrize("kind", ["sample", "flow_prediction", "velocity"])
def test_another_prediction_type_is_one_sentence(second, tmp_path, kind):
    path = tmp_path / "base"
    shutil.copytree(second, path)
    config = path / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"prediction_type": kind}))
    for check in (check_base, load_base):
        with pytest.raises(UserError, match=f"prediction_type '{kind}'.*epsilon and v_prediction") as caught:
            check(str(path))
        assert "\n" not in str(caught.value)


def test_a_base_that_is_not_there_is_said_before_anything_is_loaded(second, tmp_path):
    check_base(str(second))
    check_base("phantom")
    check_base("stabilityai/stable-diffusion-2-1")  # a hub id: nobody is asked yet
    with pytest.raises(UserError, match="There is no folder"):
        check_base(str(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no scheduler_config\.json"):
        check_base(str(tmp_path / "empty"))
