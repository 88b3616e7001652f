import numpy as np
import pytest

from raydr.grades import GRADES
from raydr.identity import rng_of
from raydr.prompts import instance_prompt, prior_prompt


def draws(dataset, grade, count=4000):
    return [prior_prompt(dataset, grade, rng_of("prompts", k)) for k in range(count)]


def test_instance_prompts_are_the_papers():
    assert [instance_prompt("DDR", grade) for grade in GRADES] == [
        "A color fundus image from DDR dataset in normal stage.",
        "A color fundus image from DDR dataset in mild DR stage.",
        "A color fundus image from DDR dataset in moderate DR stage.",
        "A color fundus image from DDR dataset in severe DR stage.",
        "A color fundus image from DDR dataset in proliferative DR stage.",
    ]


def test_prior_prompts_take_one_of_four_forms():
    assert set(draws("EyePACS", 3, 200)) == {
        "A color fundus image.",
        "A color fundus image from EyePACS dataset.",
        "A color fundus image in severe DR stage.",
        "A color fundus image from EyePACS dataset in severe DR stage.",
    }


def test_each_word_comes_with_probability_7_of_10_on_its_own():
    prompts = draws("EyePACS", 3)
    dataset = np.array(["EyePACS" in prompt for prompt in prompts])
    stage = np.array(["severe" in prompt for prompt in prompts])
    error = 4 * np.sqrt(0.21 / len(prompts))
    assert abs(dataset.mean() - 0.7) < error
    assert abs(stage.mean() - 0.7) < error
    assert abs((dataset & stage).mean() - 0.49) < error


@pytest.mark.parametrize(("dataset", "grade"), [(None, 2), ("EyePACS", None), (None, None)])
def test_what_is_not_known_is_not_named(dataset, grade):
    for prompt in draws(dataset, grade, 100):
        assert ("dataset" in prompt) <= (dataset is not None)
        assert ("stage" in prompt) <= (grade is not None)


def test_rows_without_a_grade_leave_the_stream_where_others_do():
    streams = [rng_of("stream") for _ in range(3)]
    for rng, row in zip(streams, (("EyePACS", 3), ("EyePACS", None), (None, None)), strict=True):
        prior_prompt(*row, rng)
    assert len({float(rng.random()) for rng in streams}) == 1
