"""Sampling that starts where training ends: with the low frequencies that the noisiest latents still hold."""

import dataclasses

import pytest
import torch

from diffusion.small import PX
from raydr.config import Sampler
from raydr.diffusion.leak import COUNT, SignalLeak, cosines
from raydr.diffusion.sampler import PromptCache, decode, make_scheduler, sample_latents
from raydr.errors import UserError

PROMPT = "A color fundus image from DDR dataset in severe DR stage."
SIDE = PX // 2


def latents(num, seed=0):
    """(num, 6, SIDE, SIDE) whose channels have means of their own and whose first two tints go together."""
    generator = torch.Generator().manual_seed(seed)
    tint = torch.randn((num, 6), generator=generator) * torch.tensor([0.5, 0.1, 0.2, 0.3, 0.1, 0.4])
    tint[:, 1] = tint[:, 0]
    fine = torch.randn((num, 6, SIDE, SIDE), generator=generator)
    return torch.tensor([-0.6, 0, 0.3, 0.1, 0, 0])[:, None, None] + tint[:, :, None, None] + 0.1 * fine


def test_the_cosine_transform_is_orthonormal_and_scipys():
    from scipy.fft import dct

    basis = cosines(16, 16)
    assert torch.allclose(basis @ basis.T, torch.eye(16, dtype=torch.float64), atol=1e-12)
    signal = torch.randn(16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(basis @ signal, torch.from_numpy(dct(signal.numpy(), norm="ortho")), atol=1e-12)


def test_drawn_low_frequencies_have_the_photographs_mean_and_covariance():
    real = latents(2000)
    drawn = SignalLeak.of(real).draw(range(4000), SIDE)
    wanted, found = real.mean((2, 3)), drawn.mean((2, 3))
    assert torch.allclose(found.mean(0), wanted.mean(0), atol=0.03)
    assert torch.allclose(torch.cov(found.T), torch.cov(wanted.T), atol=0.02)
    # Nothing above the first COUNT frequencies.
    spectrum = torch.einsum("nchw,yh->ncyw", drawn.double(), cosines(SIDE, SIDE))
    assert float(spectrum[:, :, COUNT:].abs().max()) < 1e-5


def test_a_mirrored_photograph_is_as_likely():
    leak = SignalLeak.of(latents(50))
    mean = SignalLeak(leak.mean, leak.factor * 0).draw([0], SIDE)
    assert torch.allclose(mean, mean.flip(-1), atol=1e-5)


def test_an_image_depends_on_its_own_seed_alone(base):
    leak, sampler = SignalLeak.of(latents(20)), Sampler(steps=2, guidance=2.0, batch=4, signal_leak=True)

    def images(*seeds):
        found = sample_latents(base, PromptCache(base), PROMPT, seeds, sampler, PX, leak=leak)
        return decode(base, found, sampler.batch)

    four, one = images(11, 12, 13, 14), images(13)
    assert torch.equal(four[2], one[0])
    plain = dataclasses.replace(sampler, signal_leak=False)
    without = sample_latents(base, PromptCache(base), PROMPT, [13], plain, PX)
    assert not torch.equal(decode(base, without, 4)[0], one[0])


def test_the_first_latents_are_what_training_ends_with(base, monkeypatch):
    """sqrt(a) z' + sqrt(1 - a) e of the first timestep: z' with zero spread is the photographs' mean."""
    fitted = SignalLeak.of(latents(20))
    leak = SignalLeak(fitted.mean, fitted.factor * 0)
    sampler = Sampler(steps=1, guidance=1.0, batch=8, signal_leak=True)
    seen = []
    forward = base.unet.forward
    monkeypatch.setattr(base.unet, "forward", lambda x, *more, **named: seen.append(x) or forward(x, *more, **named))
    sample_latents(base, PromptCache(base), PROMPT, range(8), sampler, PX, leak=leak)
    scheduler = make_scheduler(base, sampler)
    scheduler.set_timesteps(1)
    kept = scheduler.alphas_cumprod[int(scheduler.timesteps[0])]
    noise = (seen[0] - kept.sqrt() * leak.draw(range(8), SIDE)) / (1 - kept).sqrt()
    assert abs(float(noise.std()) - 1) < 0.02
    assert abs(float(noise.mean())) < 0.02


def test_a_generator_without_the_statistics_is_refused(tmp_path):
    leak = SignalLeak.of(latents(20))
    leak.save(tmp_path)
    again = SignalLeak.load(tmp_path)
    assert torch.equal(again.mean, leak.mean)
    assert torch.equal(again.factor, leak.factor)
    with pytest.raises(UserError, match="signal_leak"):
        SignalLeak.load(tmp_path / "older")
