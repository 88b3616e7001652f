"""Refreshing the pool: distribution over ranks, merged calls, early end, and who makes candidates."""

import dataclasses
import threading

import numpy as np
import pytest
import torch

from diffusion.ranks import Threads
from diffusion.small import CONFIG, PX, trainer
from raydr.diffusion import ecc
from raydr.diffusion.state import Alone

BATCH = CONFIG.ecc_batch


@pytest.mark.parametrize(
    ("calls", "grades", "merge", "expected"),
    [
        (4, 1, 1, [(0,), (1,), (2,), (3,)]),
        (5, 1, 2, [(0, 1), (2, 3), (4,)]),
        (6, 2, 2, [(0, 2), (1, 3), (4,), (5,)]),  # even calls are for the first grade
        (3, 5, 4, [(0,), (1,), (2,)]),
    ],
)
def test_calls_of_one_grade_are_merged(calls, grades, merge, expected):
    assert ecc.groups(calls, grades, merge) == expected


class Source:
    """Candidates that carry their name: the pixel says call and position, the judge reads it."""

    def __init__(self):
        self.made = []

    def __call__(self, grade, step, calls):
        self.made += list(calls)
        images = np.zeros((len(calls) * BATCH, 2, 2, 3), np.uint8)
        for n, call in enumerate(calls):
            images[n * BATCH : (n + 1) * BATCH, 0, 0, 0] = call
            images[n * BATCH : (n + 1) * BATCH, 0, 0, 1] = np.arange(BATCH)
        return images


def judge(images):
    """Call c has c mod 4 good candidates: its first ones."""
    good = images[:, 0, 0, 1] < images[:, 0, 0, 0] % 4
    return np.where(good, 0.9, 0.1)[:, None, None].repeat(5, axis=2)


def names(images):
    return torch.from_numpy(images[:, 0, 0, :2].astype(np.float32)).view(-1, 2, 1, 1)


def refreshed(config, world_size=1, grades=(1,)):
    """(pools of all ranks, calls that were made)"""
    source, pools = Source(), [None] * world_size
    group = Threads(world_size)

    def work(rank):
        ranks = group.rank(rank) if world_size > 1 else Alone()
        pools[rank] = ecc.refresh(config, grades, 20, source, judge, names, ranks)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return pools, sorted(source.made)


def contents(pool):
    return pool.latents.flatten(1).int().tolist()


def test_a_full_refresh_makes_every_call():
    (pool,), made = refreshed(dataclasses.replace(CONFIG, ecc_calls=8))
    assert made == list(range(8))
    assert contents(pool) == [
        [1, 0],
        [2, 0],
        [2, 1],
        [3, 0],
        [3, 1],
        [3, 2],
        [5, 0],
        [6, 0],
        [6, 1],
        [7, 0],
        [7, 1],
        [7, 2],
    ]
    assert (pool.step, pool.num_candidates, pool.grades) == (20, 8 * BATCH, [1] * 12)


@pytest.mark.parametrize("wanted", [1, 3, 6, 7, 100])
@pytest.mark.parametrize("merge", [1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_full_pool_ends_the_refresh_and_ranks_do_not_matter(wanted, merge, world_size):
    config = dataclasses.replace(CONFIG, ecc_calls=8, ecc_pool=wanted, ecc_merge=merge)
    pools, made = refreshed(config, world_size)
    (one,), alone = refreshed(dataclasses.replace(config, ecc_merge=1))
    for pool in pools:
        assert contents(pool) == contents(one)
        assert (pool.num_candidates, pool.grades) == (one.num_candidates, one.grades)
    # The pool is the accepted part of a prefix of calls: the shortest that holds as many as wanted.
    last = one.num_candidates // BATCH - 1
    assert sum(call % 4 for call in range(last)) < wanted
    assert wanted == 100 or len(one) >= wanted
    assert alone == list(range(last + 1))
    # No more than a round is made for nothing.
    assert len(made) <= min(8, last + world_size * merge + merge)


def test_grades_take_turns_when_calls_are_merged():
    (pool,), made = refreshed(dataclasses.replace(CONFIG, ecc_calls=8, ecc_merge=2), grades=(1, 3))
    assert made == list(range(8))
    assert {(grade, int(call) % 2) for grade, (call, _) in zip(pool.grades, contents(pool), strict=True)} == {
        (1, 0), (3, 1),
    }  # fmt: skip


def test_merged_calls_make_the_images_of_single_ones(base):
    """The noise is a candidate's own; a larger batch moves rounding alone."""
    config = dataclasses.replace(CONFIG, ecc_merge=2)
    run, _ = trainer(base, config=config, kind="ecc")
    together = run.own_candidates(1, 4, [0, 1])
    run.config = dataclasses.replace(config, ecc_merge=1)
    alone = np.concatenate([run.own_candidates(1, 4, [call]) for call in (0, 1)])
    assert together.shape == (2 * BATCH, PX, PX, 3)
    assert np.abs(together.astype(int) - alone).max() <= 1


def test_another_source_of_candidates_is_asked(base):
    asked = []

    def source(grade, step, calls):
        asked.append((grade, step, tuple(calls)))
        return np.full((len(calls) * BATCH, PX, PX, 3), 100, np.uint8)

    run, _ = trainer(base, kind="ecc", grades=(3,), candidates=source)
    run.run()
    assert asked == [(3, 2, (0,)), (3, 2, (1,)), (3, 4, (0,)), (3, 4, (1,))]


def test_the_solver_of_the_candidates_is_chosen(base):
    images = {}
    for name in ("dpm++", "ddim", "base"):
        run, _ = trainer(base, config=dataclasses.replace(CONFIG, ecc_sampler=name, ecc_steps=4), kind="ecc")
        images[name] = run.own_candidates(1, 2, [0]).astype(int)
        run.close()
    assert np.abs(images["dpm++"] - images["ddim"]).max() > 1
    assert np.abs(images["dpm++"] - images["base"]).max() > 1
