"""Fine-tuning: equal bits for equal seeds, resumed or on several ranks, and what is drawn, learnt and refused."""

import copy
import dataclasses
import threading

import numpy as np
import pytest
import torch

from diffusion.ranks import Threads
from diffusion.small import CONFIG, INSTANCE, photographs, trainer
from raydr.diffusion import lora, losses
from raydr.diffusion.state import State
from raydr.errors import UserError
from raydr.prompts import instance_prompt


def weights(run):
    return {name: value.clone() for name, value in run.state().weights.items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def assert_same_state(one, other):
    """Weights, optimizer moments, pool and step, bit for bit."""
    assert_same(one.weights, other.weights)
    for key, moments in one.optimizer["state"].items():
        assert_same(moments, other.optimizer["state"][key])
    assert (one.step, one.pool_step, one.pool_grades) == (other.step, other.pool_step, other.pool_grades)
    assert (one.pool is None) == (other.pool is None)
    assert one.pool is None or torch.equal(one.pool, other.pool)


def finished(base, **options):
    run, events = trainer(base, **options)
    run.run()
    return run, events


def test_equal_seeds_give_equal_bits(shared):
    runs = [finished(copy.deepcopy(shared), kind="ecc", seed=seed) for seed in (7, 7, 8)]
    assert_same_state(runs[0][0].state(), runs[1][0].state())
    assert runs[0][1] == runs[1][1]
    assert runs[0][1] != runs[2][1]


@pytest.mark.parametrize("kind", ["plain", "ecc"])
@pytest.mark.parametrize("cut", [1, 3, 4])
def test_a_resumed_run_repeats_an_undisturbed_one(shared, kind, cut):
    """Cut before the pool exists (1), between refreshes (3) and at one (4), through bytes, on a fresh base."""
    whole, events = finished(copy.deepcopy(shared), kind=kind)
    first, before = trainer(copy.deepcopy(shared), kind=kind)
    first.run(cut)
    data = first.state().to_bytes()
    second, after = trainer(copy.deepcopy(shared), kind=kind)
    second.restore(State.from_bytes(data))
    second.run()
    assert_same_state(second.state(), whole.state())
    assert before + after == events


def test_a_state_is_a_snapshot(base):
    run, _ = trainer(base, kind="ecc")
    run.run(3)
    state = run.state()
    data = state.to_bytes()
    run.run()
    assert_same_state(state, State.from_bytes(data))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_compiled_training_learns_the_same_and_leaves_a_plain_base(shared):
    """Loss terms of every step, validation and the share of the ECC term's gradient within a thousandth.

    Weights are no measure: AdamW makes a whole step of a gradient that is nothing but last bits.
    """
    _, plain = finished(copy.deepcopy(shared), kind="ecc")
    base = copy.deepcopy(shared)
    fast, events = trainer(base, dataclasses.replace(CONFIG, compiled=True), kind="ecc")
    assert base.unet._compiled_call_impl is not None
    fast.run()
    assert [event["event"] for event in events] == [event["event"] for event in plain]
    for one, other in zip(events, plain, strict=True):
        for key, value in other.items():
            assert one[key] == (pytest.approx(value, rel=1e-3) if isinstance(value, float) else value), (other, key)
    assert any("ecc_grad_share" in event for event in events)
    fast.close()
    assert base.unet._compiled_call_impl is None


def test_ecc_branches_from_the_plain_run(shared):
    """Until ecc_start both are the same steps; ECC from the plain run's state equals ECC from the start."""
    plain, _ = trainer(copy.deepcopy(shared))
    plain.run(CONFIG.ecc_start)
    branched, _ = trainer(copy.deepcopy(shared), kind="ecc")
    branched.restore(State.from_bytes(plain.state().to_bytes()))
    branched.run()
    straight, events = finished(copy.deepcopy(shared), kind="ecc")
    assert_same_state(branched.state(), straight.state())
    assert [("ecc" in event) for event in events if event["event"] == "step"] == [False, False, True, True, True]
    assert [event["step"] for event in events if event["event"] == "ecc"] == [2, 4]


@pytest.mark.parametrize(
    ("world_size", "options"),
    [
        (2, {"batch_pairs": 3, "accumulation": 2}),  # 2 + 1 pairs a pass
        (2, {"batch_pairs": 1}),  # a rank without any
        (3, {"batch_pairs": 4, "ecc_calls": 4, "min_snr": 5.0}),
    ],
)
def test_ranks_learn_what_one_does(shared, world_size, options):
    config = dataclasses.replace(CONFIG, **options)
    one, expected = finished(copy.deepcopy(shared), config=config, kind="ecc")
    group = Threads(world_size)
    runs = [
        trainer(copy.deepcopy(shared), config=config, kind="ecc", ranks=group.rank(rank)) for rank in range(world_size)
    ]
    threads = [threading.Thread(target=run.run) for run, _ in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reference = weights(one)
    for run, events in runs:
        assert run.step == config.steps, "a rank ended early"
        for name, value in weights(run).items():
            torch.testing.assert_close(value, reference[name], rtol=0, atol=1e-5)
        torch.testing.assert_close(run.pool.latents, one.pool.latents, rtol=0, atol=1e-4)
        assert run.pool.grades == one.pool.grades
        for event, other in zip(events, expected, strict=True):
            assert event.keys() == other.keys()
            for key in event.keys() & {"loss", "instance", "prior", "ecc", "grad_norm", "ecc_pool", "ecc_grad_share"}:
                assert event[key] == pytest.approx(other[key], rel=1e-4)
    assert_same(weights(runs[0][0]), weights(runs[-1][0]))


def test_the_first_loss_by_hand(base):
    """Of step 0: one instance and one prior term, from the drawn batch and a plain forward pass."""
    run, events = trainer(base)
    latents, prompts, noise, timesteps = run._batch([0, 1], has_pool=False)
    assert prompts[:2] == [instance_prompt("DDR", 1)] * 2
    alpha = base.scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    with torch.no_grad():
        error = (base.unet(noisy, timesteps, base.embed(prompts)).sample - noise).square().flatten(1).mean(1)
    run.run(1)
    instance, prior = error[:2].mean().item(), error[2:].mean().item()
    assert events[0]["instance"] == pytest.approx(instance, rel=1e-5)
    assert events[0]["prior"] == pytest.approx(prior, rel=1e-5)
    assert events[0]["loss"] == pytest.approx(instance + CONFIG.w_prior * prior, rel=1e-5)
    assert "ecc" not in events[0]


def test_draws_depend_on_step_and_position_alone(base):
    run, _ = trainer(base)
    together, alone = run._batch([0, 1], False), run._batch([1], False)
    for k, part in enumerate(together):
        if k != 1:
            assert torch.equal(part[1], alone[k][0])  # instance
            assert torch.equal(part[3], alone[k][1])  # prior
    assert [together[1][1], together[1][3]] == alone[1]
    run.step = 1
    assert not torch.equal(run._batch([1], False)[2], alone[2])


def test_prompts_noise_and_timesteps_of_many_draws(base):
    """Over 200 draws: data set and stage words each with p = .7, no stage words where there is no grade."""
    run, _ = trainer(base)
    _, prompts, noise, timesteps = run._batch(list(range(200)), False)
    priors = prompts[200:]
    assert 0.6 < np.mean(["EyePACS" in prompt for prompt in priors]) < 0.8
    # 5 of 6 are labelled; p = .7.
    assert 0.45 < np.mean(["stage" in prompt for prompt in priors]) < 0.7
    assert {prompt.startswith("A color fundus image") for prompt in priors} == {True}
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01
    assert 400 < timesteps.float().mean() < 600
    assert timesteps.min() >= 0
    assert timesteps.max() <= 999


def test_noise_offset_shifts_whole_channels(base):
    plain, _ = trainer(base)
    noise = plain._batch([0], False)[2]
    plain.close()
    offset, _ = trainer(base, config=dataclasses.replace(CONFIG, noise_offset=0.1))
    difference = offset._batch([0], False)[2] - noise
    assert difference.abs().max() > 0.01
    assert difference.std((2, 3)).max() < 1e-6


def test_no_number_stops_with_a_sentence(base):
    run, _ = trainer(base, config=dataclasses.replace(CONFIG, learning_rate=1e30))
    with pytest.raises(UserError, match=r"plain-test.*no number at step 2.*finetune\.learning_rate"):
        run.run()
    assert run.step == 1


def test_a_gradient_that_is_no_number_never_reaches_the_weights(base, monkeypatch):
    run, _ = trainer(base)
    run.run(1)
    before = weights(run)
    # A finite loss can have an infinite gradient: the square root of an error of exactly zero.
    monkeypatch.setattr(losses, "sum_of_squares", lambda p, t, w=None: ((p - p.detach()).square().sum() + 0.0).sqrt())
    with pytest.raises(UserError, match="gradient is no number at step 2"):
        run.run()
    assert_same(weights(run), before)


def test_a_grade_without_photographs_is_refused(base):
    with pytest.raises(UserError, match="no training photograph of grade 4"):
        trainer(base, grades=(1, 4))
    assert not any("lora" in name for name, _ in base.unet.named_parameters())


def test_the_base_is_as_before_after_closing(base):
    before = {name: value.clone() for name, value in base.unet.state_dict().items()}
    run, _ = finished(base, kind="ecc")
    run.close()
    assert_same(base.unet.state_dict(), before)


def test_the_next_adapter_does_not_know_the_one_before(shared):
    used, fresh = copy.deepcopy(shared), copy.deepcopy(shared)
    finished(used, seed=1)[0].close()
    assert_same_state(finished(used, seed=2)[0].state(), finished(fresh, seed=2)[0].state())


def test_checkpoints_come_when_asked(base):
    run, _ = trainer(base, config=dataclasses.replace(CONFIG, checkpoint_every=2))
    states = []
    run.run(checkpoint=states.append)
    assert [state.step for state in states] == [2, 4]
    assert not torch.equal(*(next(iter(state.weights.values())) for state in states))


def test_a_notice_is_answered_by_a_checkpoint_at_that_step(base):
    run, _ = trainer(base, config=dataclasses.replace(CONFIG, checkpoint_every=4))
    states = []
    run.run(checkpoint=states.append, urgent=lambda: run.step == 3)
    assert [state.step for state in states] == [3, 4]


def test_what_is_trained_fits_what_it_saw(base):
    """Validation on the training photographs: their loss falls. (Random latents: there is nothing else to learn.)"""
    config = dataclasses.replace(CONFIG, steps=25, learning_rate=1e-2, batch_pairs=4, validate_every=25, w_prior=0.0)
    run, events = trainer(base, config=config)
    before = run.validation_loss()
    run.run()
    assert events[-1]["validation"] < 0.95 * before
    assert run.validation_loss() == events[-1]["validation"]
    assert all("validation" not in event for event in events[:-1])


def test_validation_is_of_the_trained_grades_alone(base):
    run, _ = trainer(base, grades=(3,))
    loss = run.validation_loss()
    run.validation = photographs([1, 1, 2])
    assert run.validation_loss() is None
    run.validation = dataclasses.replace(INSTANCE, grades=np.array([0, 0, 0, 3, 3, 0]))
    assert run.validation_loss() == loss
    run.validation = None
    assert run.validation_loss() is None


def test_every_weight_may_be_trained(shared):
    config = dataclasses.replace(CONFIG, full=True, steps=3, learning_rate=1e-4)
    whole, _ = finished(copy.deepcopy(shared), config=config)
    first, _ = trainer(copy.deepcopy(shared), config=config)
    first.run(2)
    data = first.state().to_bytes()
    second, _ = trainer(copy.deepcopy(shared), config=config)
    second.restore(State.from_bytes(data))
    second.run()
    assert_same_state(second.state(), whole.state())
    assert not torch.equal(whole.base.unet.conv_in.weight, shared.unet.conv_in.weight)


def test_generators_that_train_every_weight_all_start_from_the_base(base):
    config = dataclasses.replace(CONFIG, full=True, steps=3, learning_rate=1e-3)
    untrained = {name: value.clone() for name, value in base.unet.state_dict().items()}
    first, _ = finished(base, config=config)
    after = {name: value.clone() for name, value in first.weights.state()["weights"].items()}
    first.close()
    assert_same(dict(base.unet.state_dict()), untrained)
    assert not any(parameter.requires_grad for parameter in base.unet.parameters())
    second, _ = finished(base, config=config)
    assert_same(second.weights.state()["weights"], after)


def test_gradient_checkpointing_changes_no_gradient(shared):
    runs = []
    for checkpointing in (False, True):
        config = dataclasses.replace(CONFIG, steps=3, gradient_checkpointing=checkpointing)
        run, events = trainer(copy.deepcopy(shared), config=config)
        recomputed = []
        run.base.unet.down_blocks[1].attentions[0].transformer_blocks[0].register_forward_pre_hook(
            lambda *_, seen=recomputed: seen.append(1)
        )
        run.run()
        runs.append((weights(run), len(recomputed), events))
    assert_same(runs[0][0], runs[1][0])
    assert runs[1][1] > runs[0][1], "nothing was recomputed: the memory is not saved"


def test_bf16_keeps_an_fp32_adapter(shared):
    base = copy.deepcopy(shared)
    for part in (base.unet, base.vae, base.text_encoder):
        part.to(torch.bfloat16)
    run, events = finished(base, config=dataclasses.replace(CONFIG, precision="bf16"), kind="ecc")
    assert {p.dtype for p in run.weights.parameters} == {torch.float32}
    _, exact = finished(copy.deepcopy(shared), kind="ecc")
    assert events[0]["loss"] == pytest.approx(exact[0]["loss"], rel=0.05)
    assert np.isfinite(events[-1]["loss"])


def test_the_saved_adapter_samples_what_the_trainer_does(base, tmp_path):
    """What the ensemble judged during training is what the stored generator makes."""
    run, _ = finished(base, kind="ecc")
    image = run.sample(1, [5], 3, 2.0, 2)
    run.weights.save(tmp_path)
    run.close()
    lora.Fused(base.unet).switch(tmp_path)
    fused = type(run).sample(run, 1, [5], 3, 2.0, 2)
    assert np.abs(image.astype(int) - fused).max() <= 1


def test_accumulated_passes_are_one_large_batch(shared):
    """2 pairs x 3 passes and 6 pairs x 1 draw the same photographs and sum the same gradients."""
    runs = [
        finished(copy.deepcopy(shared), config=dataclasses.replace(CONFIG, batch_pairs=pairs, accumulation=passes))
        for pairs, passes in ((2, 3), (6, 1))
    ]
    for event, other in zip(runs[0][1], runs[1][1], strict=True):
        for key in ("loss", "instance", "prior", "grad_norm"):
            assert event[key] == pytest.approx(other[key], rel=1e-5)
    for one, other in zip(weights(runs[0][0]).values(), weights(runs[1][0]).values(), strict=True):
        assert (one - other).abs().max() < 1e-5


def test_passes_are_shared_out_before_pairs_are(base, monkeypatch):
    """Four passes of two pairs on two ranks are two full passes each, not four half-empty ones."""
    config = dataclasses.replace(CONFIG, batch_pairs=2, accumulation=4)
    sizes = []
    run, _ = trainer(base, config=config)
    run.ranks = type("Half", (), {"rank": 0, "world_size": 2, "sum": lambda self, tensors: None})()
    predict = run._predict
    monkeypatch.setattr(run, "_predict", lambda noisy, *rest: sizes.append(len(noisy)) or predict(noisy, *rest))
    run._optimize()
    assert sizes == [4, 4]  # instance and prior of two pairs
