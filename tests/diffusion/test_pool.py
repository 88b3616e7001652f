"""The pool of agreeing candidates during a training: what enters it, and what is learnt where none does."""

import copy
import dataclasses

import numpy as np
import torch

from diffusion.small import CONFIG, MEANS, PX, judge, trainer
from diffusion.test_training import assert_same, finished, weights
from raydr.prompts import instance_prompt


def test_candidates_that_agree_make_the_pool(base):
    run, events = trainer(base, kind="ecc", grades=(1, 3))
    run.run(3)
    (event,) = (event for event in events if event["event"] == "ecc")
    # Of each call's 4 candidates the 3 best are looked at and 2 reach .7; call 0 is grade 1, call 1 grade 3.
    assert (event["ecc_pool"], event["ecc_candidates"], event["ecc_acceptance"]) == (4, 8, 0.5)
    assert run.pool.grades == [1, 1, 3, 3]
    assert run.pool.latents.shape == (4, 6, PX // 2, PX // 2)
    assert events[-1]["ecc"] > 0
    _, prompts, _, _ = run._batch(list(range(12)), True)
    assert set(prompts[24:]) == {instance_prompt("DDR", 1), instance_prompt("DDR", 3)}


def test_pool_latents_are_of_the_best_candidates(base):
    run, _ = trainer(base, kind="ecc", config=dataclasses.replace(CONFIG, ecc_calls=1))
    run.run(2)
    images = run.own_candidates(1, 2, [0])
    best = np.argsort(-MEANS)[:2]
    expected = base.encode(torch.from_numpy(images[best]).permute(0, 3, 1, 2).float() / 127.5 - 1)
    run.run(3)
    torch.testing.assert_close(run.pool.latents, expected, rtol=0, atol=1e-4)


def test_ecc_is_off_while_no_candidate_passes(shared):
    nothing = finished(copy.deepcopy(shared), kind="ecc", judge=lambda images: 0.5 * judge(images))
    plain = finished(copy.deepcopy(shared))
    assert_same(weights(nothing[0]), weights(plain[0]))
    assert [event["ecc_pool"] for event in nothing[1] if event["event"] == "ecc"] == [0, 0]
    assert not any("ecc" in event for event in nothing[1] if event["event"] == "step")
    pool = finished(copy.deepcopy(shared), kind="ecc")
    assert any(
        not torch.equal(a, b) for a, b in zip(weights(pool[0]).values(), weights(plain[0]).values(), strict=True)
    )


def test_the_control_keeps_candidates_unseen(base):
    config = dataclasses.replace(CONFIG, ecc_select=False)
    run, events = trainer(base, kind="ecc", config=config, judge=lambda images: 0 * judge(images))
    run.run(3)
    assert [event["ecc_pool"] for event in events if event["event"] == "ecc"] == [6]
