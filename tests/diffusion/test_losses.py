import math

import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn

from raydr.diffusion import losses

W_PRIOR, W_ECC = 0.1, 1e-3


def scheduler(kind="epsilon"):
    return DDPMScheduler(1000, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=kind)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.SiLU(), nn.Conv2d(5, 3, 3, padding=1)).double()


def batch(count, seed=1):
    torch.manual_seed(seed)
    return torch.randn(count, 3, 6, 6).double(), torch.randn(count, 3, 6, 6).double()


def gradients(model):
    found = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    return found


def reference(model, noisy, target, sizes, weight=None):
    """Three forward passes of their own, and PyTorch's mean squared error."""
    loss, terms = 0, []
    for w, x, y, s in zip(
        (1, W_PRIOR, W_ECC),
        noisy.split(sizes),
        target.split(sizes),
        (torch.ones(len(noisy)) if weight is None else weight).split(sizes),
        strict=True,
    ):
        images = [s[i] * nn.functional.mse_loss(model(x[i : i + 1]), y[i : i + 1]) for i in range(len(x))]
        terms.append(torch.stack(images).mean() if images else torch.zeros(()))
        loss = loss + w * terms[-1]
    return loss, terms


@pytest.mark.parametrize("sizes", [(2, 2, 2), (3, 2, 1), (2, 2, 0), (1, 4, 3)])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_and_gradients_equal_plain_pytorch(sizes, weighted):
    model = network()
    noisy, target = batch(sum(sizes))
    weight = torch.rand(sum(sizes), dtype=torch.double) if weighted else None
    loss, terms = losses.three_terms(model(noisy), target, sizes, sizes, W_PRIOR, W_ECC, weight)
    loss.backward()
    own = gradients(model)
    expected, expected_terms = reference(model, noisy, target, sizes, weight)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for term, other in zip(terms, expected_terms, strict=True):
        assert term.item() == pytest.approx(other.item(), rel=1e-6)
    # The squares are taken in float32 whatever the model computes in: 1e-6 of the largest gradient.
    torch.testing.assert_close(own, gradients(model), rtol=0, atol=1e-6 * float(own.abs().max()))


def test_a_three_way_chunk_would_misalign():
    """The published flaw: with unequal parts, equal thirds give another loss than ours."""
    model, sizes = network(), (3, 2, 1)
    noisy, target = batch(6)
    loss, _ = losses.three_terms(model(noisy), target, sizes, sizes, W_PRIOR, W_ECC)
    thirds, _ = reference(model, noisy, target, (2, 2, 2))
    assert float(loss) != pytest.approx(float(thirds), rel=1e-3)


def test_shares_of_ranks_sum_to_the_whole():
    model, sizes = network(), (4, 4, 3)
    noisy, target = batch(11)
    loss, terms = losses.three_terms(model(noisy), target, sizes, sizes, W_PRIOR, W_ECC)
    loss.backward()
    whole = gradients(model)
    sums, parts = 0.0, [0.0, 0.0, 0.0]
    # Rank 0 holds instances 0-2, priors 0 and all of the pool; rank 1 the rest and no ECC image.
    for rows, mine in (([0, 1, 2, 4, 8, 9, 10], (3, 1, 3)), ([3, 5, 6, 7], (1, 3, 0))):
        loss_of_rank, terms_of_rank = losses.three_terms(model(noisy[rows]), target[rows], mine, sizes, W_PRIOR, W_ECC)
        loss_of_rank.backward()
        sums += float(loss_of_rank)
        parts = [a + float(b) for a, b in zip(parts, terms_of_rank, strict=True)]
    assert sums == pytest.approx(float(loss), rel=1e-6)
    assert parts == pytest.approx([float(term) for term in terms], rel=1e-6)
    torch.testing.assert_close(gradients(model), whole, rtol=0, atol=1e-6 * float(whole.abs().max()))


def test_an_empty_pool_adds_nothing():
    noisy, target = batch(4)
    loss, terms = losses.three_terms(noisy, target, (2, 2, 0), (2, 2, 0), W_PRIOR, W_ECC)
    assert float(terms[2]) == 0
    assert float(loss) == pytest.approx(float(terms[0] + W_PRIOR * terms[1]))


def test_sizes_must_add_up():
    noisy, target = batch(4)
    with pytest.raises(AssertionError):
        losses.three_terms(noisy, target, (2, 1, 0), (2, 1, 0), W_PRIOR, W_ECC)


def test_the_epsilon_target_is_the_noise():
    latents, noise = batch(3)
    assert losses.prediction_target(scheduler(), latents, noise, torch.tensor([0, 500, 999])) is noise


def test_the_velocity_target_equals_diffusers():
    latents, noise = batch(3)
    timesteps = torch.tensor([0, 500, 999])
    solver = scheduler("v_prediction")
    target = losses.prediction_target(solver, latents, noise, timesteps)
    torch.testing.assert_close(target, solver.get_velocity(latents, noise, timesteps))
    alpha = float(solver.alphas_cumprod[500])
    expected = math.sqrt(alpha) * noise[1] - math.sqrt(1 - alpha) * latents[1]
    torch.testing.assert_close(target[1], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_min_snr_weights(kind, gamma):
    solver, timesteps = scheduler(kind), torch.arange(0, 1000, 37)
    weights = losses.min_snr_weight(solver, timesteps, gamma)
    for t, weight in zip(timesteps.tolist(), weights.tolist(), strict=True):
        alpha = float(solver.alphas_cumprod[t])
        snr = alpha / (1 - alpha)
        assert weight == pytest.approx(min(snr, gamma) / (snr if kind == "epsilon" else snr + 1), rel=1e-4)
    if kind == "epsilon":  # clear images weigh little, noisy ones 1
        assert weights[0] < 0.01
        assert weights[-1] == 1
