"""Rescoring without a cluster: what a call of the actor leaves, and which members are refused."""

import json

import numpy as np
import pytest
from grading.test_rescoring import member, write_images, write_photographs

from raydr import schema, shards
from raydr.cluster import rescore, session
from raydr.errors import LeakageError
from raydr.grading import ensemble, rescoring
from raydr.storage import Run


@pytest.fixture
def work(tmp_path):
    """(run, judges, plan) of one shard of six images."""
    run = Run(tmp_path / "out")
    write_photographs(run)
    write_images(run)
    member(tmp_path / "graders", "00-a")
    judges = rescoring.find(run, str(tmp_path / "graders"), "score", session.node_cache(run))
    return run, judges, rescoring.plan(run, judges)


def actor(run, judges, name="rescore-1"):
    return rescore.Rescore(run.url, judges.ensemble_id, judges.prefixes, name, gpu=False, threads=1)


def call(made, item):
    (answer,) = made({"item": np.array([json.dumps(item)])})["answer"]
    return json.loads(answer)


def test_a_call_commits_a_shard_and_a_repeated_one_adopts_it(work):
    run, judges, (item,) = work
    made = actor(run, judges)
    assert call(made, item) == {"rows": 6}
    before = shards.commits(run, "scores")
    assert call(made, item) == {"rows": 6}
    assert shards.commits(run, "scores") == before
    assert shards.read(run, "scores", schema.SCORES).num_rows == 6


def test_a_call_that_is_repeated_judges_only_what_it_had_not_come_to(work, monkeypatch):
    """Ray runs a call again whole when its worker was lost; a shard that cannot be judged leaves the others alone."""
    run, judges, (item,) = work
    other = item | {"scores": "scores/other.parquet", "sha256": "0" * 64}
    answers = [
        json.loads(each)
        for each in actor(run, judges)({"item": np.array([json.dumps(other), json.dumps(item)])})["answer"]
    ]
    assert "raydr repair" in answers[0]["refused"]
    assert answers[1] == {"rows": 6}
    monkeypatch.setattr(rescoring, "score_shard", None)  # what is committed is not judged again
    assert call(actor(run, judges), item) == {"rows": 6}
    for _ in range(rescore.MAX_STARTS):  # nor is it ever given up for what others of its call did
        assert call(actor(run, judges), item) == {"rows": 6}
    assert shards.quarantined(run, "scores") == []


@pytest.mark.parametrize(("num_shards", "actors", "most"), [(1, 2, 1), (15, 2, 1), (128, 2, 8), (10_000, 64, 8)])
def test_calls_are_small_beside_what_an_actor_does(num_shards, actors, most):
    each = rescore.each_call(num_shards, actors)
    assert each == most
    assert num_shards / each >= 8 * actors or each == 1


def test_a_user_s_mistake_comes_back_as_its_sentence(work):
    run, judges, (item,) = work
    answer = call(actor(run, judges), item | {"sha256": "0" * 64})
    assert "raydr repair" in answer["refused"]


def test_the_fourth_start_of_a_session_leaves_the_shard_out(work):
    run, judges, (item,) = work
    for _ in range(rescore.MAX_STARTS):  # three processes that ended inside
        shards.record_start(run, item["scores"], "rescore-1")
    for _ in range(5):  # starts of earlier drivers
        shards.record_start(run, item["scores"], "rescore-0")
    assert call(actor(run, judges), item) == {"lost": item["key"]}
    (note,) = shards.quarantined(run, "scores")
    assert (note["key"], note["reason"]) == (item["scores"], "crashed")
    # Another session tries again.
    assert call(actor(run, judges, "rescore-2"), item) == {"rows": 6}


@pytest.mark.parametrize(
    ("seen", "fold", "told"),
    [
        (["DDR/test-0"], None, "00-a.* was trained on 1 of 1 test"),
        (["DDR/test-0"], 0, "trained on 1 of 1 test"),
        (["DDR/train-0"], 0, "trained on 1 of 1 validation"),
        (["DDR/train-0", "DDR/train-1"], 1, "trained on 1 of 1 validation"),
        (["DDR/train-1"], 0, None),
        (["DDR/train-0", "DDR/train-1"], None, None),
    ],
)
def test_members_that_saw_what_is_evaluated_are_refused(work, tmp_path, seen, fold, told):
    member(tmp_path / "others", "00-a", trained_on=seen)
    metas = [ensemble.load_meta(tmp_path / "others" / "00-a")]
    if told is None:
        rescore.refuse_leaks(work[0], metas, fold)
        return
    with pytest.raises(LeakageError, match=told):
        rescore.refuse_leaks(work[0], metas, fold)


def test_imported_checkpoints_prove_nothing(work, tmp_path):
    member(tmp_path / "others", "00-a", provenance="imported")
    with pytest.raises(LeakageError, match="was imported and cannot show"):
        rescore.refuse_leaks(work[0], [ensemble.load_meta(tmp_path / "others" / "00-a")], None)
