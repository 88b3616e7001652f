import shutil

import pytest
import torch

from raydr.diffusion.model import base_fingerprint, from_uint8, load_base, to_uint8
from raydr.errors import UserError


def test_pixels_survive_the_way_to_floats_and_back():
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 16, 16, 3)
    floats = from_uint8(pixels)
    assert (floats.shape, float(floats.min()), float(floats.max())) == ((1, 3, 16, 16), -1.0, 1.0)
    assert torch.equal(to_uint8(floats), pixels)
    assert torch.equal(to_uint8(3 * floats)[0, 0, 0], torch.zeros(3, dtype=torch.uint8))


def test_all_parts_are_frozen_and_in_eval_mode(shared):
    for part in (shared.text_encoder, shared.vae, shared.unet):
        assert not part.training
        assert not any(p.requires_grad for p in part.parameters())
        assert part.dtype == torch.float32
    assert shared.latent_factor == 2


def test_precision_is_of_the_weights(folder):
    base = load_base(str(folder), "bf16")
    assert {p.dtype for part in (base.text_encoder, base.vae, base.unet) for p in part.parameters()} == {torch.bfloat16}


def test_embeddings_are_padded_to_the_full_length(shared):
    words = shared.embed(["A color fundus image.", ""])
    assert words.shape == (2, 32, 64)
    assert not words.requires_grad


def test_encode_and_decode_scale_alike(base):
    """A louder scaling factor changes latents, not pixels."""
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    pixels = base.decode(base.encode(images))
    latents = base.encode(images)
    base.vae.register_to_config(scaling_factor=2 * base.vae.config.scaling_factor)
    torch.testing.assert_close(base.encode(images), 2 * latents)
    assert (base.decode(base.encode(images)).int() - pixels.int()).abs().max() <= 1
    drawn = base.encode(images, torch.Generator().manual_seed(1))
    assert not torch.equal(drawn, base.encode(images))
    assert torch.equal(drawn, base.encode(images, torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("part", ["tokenizer", "text_encoder", "vae", "unet", "scheduler"])
def test_a_missing_part_is_one_sentence(folder, tmp_path, part):
    copy = tmp_path / "base"
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / part)
    with pytest.raises(UserError, match=r"base model (could not be loaded from|in) the folder") as caught:
        load_base(str(copy))
    assert "\n" not in str(caught.value)


def test_weights_are_read_as_safetensors_alone(folder, tmp_path):
    """A pickle in the folder is not opened, whatever it would do."""
    copy = tmp_path / "base"
    shutil.copytree(folder, copy)
    (copy / "unet" / "diffusion_pytorch_model.safetensors").rename(copy / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError):
        load_base(str(copy))


def test_an_unknown_hub_id_is_one_sentence():
    with pytest.raises(UserError, match="the hub id 'nobody/nothing'") as caught:
        load_base("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_the_fingerprint_is_of_the_content(folder, tmp_path):
    copy = tmp_path / "elsewhere"
    shutil.copytree(folder, copy)
    assert base_fingerprint(str(copy)) == base_fingerprint(str(folder))
    path = copy / "scheduler" / "scheduler_config.json"
    path.write_text(path.read_text().replace("0.012", "0.013"))
    assert base_fingerprint(str(copy)) != base_fingerprint(str(folder))
    assert base_fingerprint("some/base", "abc") != base_fingerprint("some/base", "abd")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no model"):
        base_fingerprint(str(tmp_path / "empty"))
