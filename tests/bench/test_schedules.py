"""The comparison of ECC's schedules: its arithmetic, and (slow) a real one on the small base."""

import dataclasses
import json
from pathlib import Path

import pytest

from raydr.bench import schedules
from raydr.bench.schedules import Outcome
from raydr.errors import UserError


def test_the_verdict_by_hand():
    pairs = [(Outcome(0.5, 0.4, 6.0, 2.0), Outcome(0.501, 0.42, 1.0, 2.0)) for _ in range(3)]
    found = schedules.verdict(pairs)
    assert found["num_seeds"] == 3
    assert found["validation_loss_relative"]["mean"] == pytest.approx(0.002)
    assert found["validation_loss_relative"]["equivalent"]
    assert found["acceptance"]["mean"] == pytest.approx(0.02)
    assert not found["acceptance"]["equivalent"]
    assert (found["ratio_full"], found["ratio_cheap"]) == (3.0, 0.5)


def test_fields_of_the_cheap_schedule():
    assert schedules._fields(["ecc_steps=5", "ecc_sampler=ddim", "ecc_guidance=1.5"]) == {
        "ecc_steps": 5, "ecc_sampler": "ddim", "ecc_guidance": 1.5,
    }  # fmt: skip
    for word in ("steps=5", "ecc_stepz=5", "ecc_steps", "ecc_steps="):
        with pytest.raises(UserError, match="ecc_FIELD=VALUE"):
            schedules._fields([word])


def test_a_mistake_is_one_sentence(tmp_path, capsys):
    assert schedules.main([str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.startswith("raydr: There is no run in")
    assert schedules.main([str(tmp_path / "nothing"), "--cheap", "steps=5"]) == 2


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_cheap_schedule_costs_less(tmp_path, capsys, monkeypatch):
    """Five seeds at debug scale through the entry point; what it shows is printed, only the cost is asserted."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "cluster"))
    from small_run import changed, make_run, small_recipe

    settings = {
        "base": "phantom", "px": 32, "grades": (1,), "steps": 24, "ecc_start": 12, "ecc_every": 6, "ecc_calls": 4,
        "ecc_batch": 8, "ecc_keep": 6, "ecc_steps": 10, "ecc_threshold": 0.15, "batch_pairs": 4,
    }  # fmt: skip
    recipe = changed(small_recipe(), finetune=settings)
    target = make_run(tmp_path / "out", recipe, samples_per_grade=1)
    target.replace_json("recipe.json", json.loads(json.dumps({"recipe": dataclasses.asdict(recipe)})))
    cheap = ["--cheap", "ecc_steps=4", "ecc_pool=6", "--cheap", "ecc_every=12"]
    assert schedules.main([target.url, "--images", "16", *cheap]) == 0
    printed = capsys.readouterr().out
    told = json.loads(printed[printed.index("{") :])
    with capsys.disabled():
        print(f"\n{printed}")
    assert list(told) == ["ecc_steps=4 ecc_pool=6", "ecc_every=12", "w_ecc=0"]
    assert [found["num_seeds"] for found in told.values()] == [5, 5, 5]
    found = told["ecc_steps=4 ecc_pool=6"]
    assert found["ratio_cheap"] < 0.6 * found["ratio_full"]
    assert told["ecc_every=12"]["ratio_cheap"] < 0.8 * found["ratio_full"]
    assert told["w_ecc=0"]["ratio_cheap"] == 0
    # Again: nothing is trained twice.
    monkeypatch.setattr(schedules.Setup, "outcome", None)
    monkeypatch.setattr(schedules.Setup, "trainer", None)
    assert schedules.main([target.url, "--images", "16", *cheap]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed[printed.index("{") :]) == told
