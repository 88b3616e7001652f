"""File names tell the source, and the source the grade: a generator's prompts say data set and stage, no name."""

import copy
import dataclasses

import torch

from diffusion.small import INSTANCE, trainer


def test_a_generator_is_the_same_whatever_its_photographs_are_called(shared):
    states = []
    for names in (INSTANCE.image_ids, tuple(f"DDR/20170413{k:09d}_3" for k in range(len(INSTANCE.image_ids)))):
        run, _ = trainer(copy.deepcopy(shared), instance=dataclasses.replace(INSTANCE, image_ids=names))
        run.run(2)
        states.append(run.state().weights)
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
