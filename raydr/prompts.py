"""Prompts of the paper (Zhang et al., MICCAI 2025; its published code for the probabilities).

Instance photographs name data set and stage always, prior photographs each with p = 0.7, so that
the model keeps the unconditional notion of a fundus photograph.
"""

from collections.abc import Sequence

import numpy as np

from raydr.grades import STAGES

PRIOR_WORD_PROBABILITY = 0.7


def instance_prompt(dataset: str, grade: int) -> str:
    """What a generator is trained and sampled with: data set and stage, both named."""
    return f"A color fundus image from {dataset} dataset in {STAGES[grade]} stage."


def prior_prompt(dataset: str | None, grade: int | None, rng: np.random.Generator) -> str:
    """Prompt of a prior photograph; two independent draws decide which words it gets.

    Both draws are always made, so a row without a grade leaves the random stream where a row
    with one does.
    """
    names_dataset, names_stage = rng.random(2) < PRIOR_WORD_PROBABILITY
    prompt = "A color fundus image"
    if dataset is not None and names_dataset:
        prompt += f" from {dataset} dataset"
    if grade is not None and names_stage:
        prompt += f" in {STAGES[grade]} stage"
    return prompt + "."


def every_prompt(datasets: Sequence[str]) -> list[str]:
    """All that `instance_prompt` and `prior_prompt` can say of these data sets, and the empty one of guidance."""
    found = [""]
    for dataset in (None, *datasets):
        for stage in (None, *STAGES):
            prompt = "A color fundus image"
            prompt += f" from {dataset} dataset" if dataset is not None else ""
            prompt += f" in {stage} stage" if stage is not None else ""
            found.append(prompt + ".")
    return found
