"""Snapshots are found on the storage, trusted by their checksum, and kept few; no Ray is started."""

import errno
from types import SimpleNamespace

import pytest
import torch

from raydr.cluster import snapshots
from raydr.diffusion.state import Alone, State
from raydr.errors import UserError
from raydr.storage import Run

NAME, ONE, OTHER = "finetune-abc", "plain-g1-1234", "ecc-g1-5678"


@pytest.fixture
def target(tmp_path):
    return Run(str(tmp_path / "out"))


def put(target, generator_id, step, token="0a", data=None, fit=NAME):
    key = f"{snapshots.ROOT}/{fit}/{generator_id}@{step:08d}-{token}/{snapshots.FILE}"
    target.replace(key, State(step, {"a": torch.full((3,), float(step))}).to_bytes() if data is None else data)
    return key


def newest(target, generator_id):
    said = []
    return snapshots.newest(target, generator_id, Alone(), said.append), said


def test_the_newest_of_this_generator_is_taken(target):
    for generator_id, step in ((ONE, 8), (ONE, 100), (ONE, 20), (OTHER, 200)):
        put(target, generator_id, step)
    state, said = newest(target, ONE)
    assert (state.step, float(state.weights["a"][0]), said) == (100, 100.0, [])


def test_snapshots_of_another_fit_of_the_run_are_as_good(target):
    """All generators in one fit, then side by side: what was saved goes on."""
    put(target, ONE, 8)
    put(target, ONE, 20, fit="finetune-def")
    assert newest(target, ONE)[0].step == 20


def test_there_may_be_none(target):
    put(target, OTHER, 3)
    assert newest(target, ONE) == (None, [])


def test_a_truncated_snapshot_falls_back_to_the_one_before_with_a_sentence(target):
    put(target, ONE, 20)
    good = State(40).to_bytes()
    put(target, ONE, 40, data=good[: len(good) // 2])
    put(target, ONE, 60, data=b"")
    state, said = newest(target, ONE)
    assert state.step == 20
    (sentence,) = said
    assert sentence == (f"The snapshot of {ONE} at step 60, 40 is cut short or damaged: training went on from step 20")


def test_without_a_good_one_training_begins_at_the_start(target):
    put(target, ONE, 40, data=b"x" * 100)
    state, said = newest(target, ONE)
    assert state is None
    assert said[0].endswith("training went on from the start")


def test_the_same_step_twice_is_two_snapshots(target):
    """One damaged, one made again by the restarted run."""
    put(target, ONE, 40, "0a", data=b"")
    put(target, ONE, 40, "0b")
    assert newest(target, ONE)[0].step == 40


def test_others_files_in_ray_trains_folder_are_passed_over(target):
    put(target, ONE, 5)
    for name in ("checkpoint_manager_snapshot.json", f"{ONE}@00000009-zz/notes.txt", "x/state.pt"):
        target.create(f"{snapshots.ROOT}/{NAME}/{name}", b"{}")
    assert [snapshot.step for snapshot in snapshots.listed(target)] == [5]


def test_a_fit_begins_without_rays_own_record_and_with_few_snapshots(target):
    record = f"{snapshots.ROOT}/{NAME}/checkpoint_manager_snapshot.json"
    target.create(record, b'{"half')  # a kill inside its rewriting
    for step in (10, 20, 30, 40):
        put(target, ONE, step)
    put(target, OTHER, 7)
    snapshots.prepare(target, [NAME])
    assert not target.exists(record)
    left = [(snapshot.generator_id, snapshot.step) for snapshot in snapshots.listed(target)]
    assert left == [(ONE, 40), (ONE, 30), (OTHER, 7)]
    snapshots.drop(target, [ONE])
    assert [snapshot.generator_id for snapshot in snapshots.listed(target)] == [OTHER]


def test_the_sentence_is_found_inside_ray_trains_wrappers():
    mistake = UserError("the disk is full")
    wrapped = RuntimeError("worker failed")
    wrapped._base_exc = mistake
    group = RuntimeError("group failed")
    group.worker_failures = {0: RuntimeError("connection reset"), 1: wrapped}
    assert snapshots.sentence(group, "out") is mistake
    assert snapshots.sentence(RuntimeError("other"), "out") is None


def test_a_full_disk_that_raydr_itself_did_not_meet_is_a_sentence():
    """Ray's controller keeps records of its own on the same disk."""
    failed = RuntimeError("the controller failed")
    failed.controller_failure = OSError(errno.ENOSPC, "No space left on device", "/o/_ray/x.json")
    told = str(snapshots.sentence(failed, "/o"))
    assert told.startswith("fine-tuning cannot use /o/_ray/x.json: the disk is full; mend that")
    failed.controller_failure = OSError(errno.ECONNRESET, "Connection reset by peer")
    assert snapshots.sentence(failed, "/o") is None


def test_a_notice_is_heard_once_for_each_node(monkeypatch):
    notices = iter([None, {"a": [0]}, {"a": [0]}, {"a": [0], "b": [1]}, {"a": [0], "b": [1]}])
    monkeypatch.setattr(
        snapshots.ray.train,
        "get_preemption_info",
        lambda: (lambda nodes: nodes and SimpleNamespace(preempted_node_to_ranks=nodes))(next(notices)),
    )
    urgent = snapshots.Preemption(possible=True)
    assert [(urgent(), urgent.noticed) for _ in range(5)] == [
        (False, False), (True, True), (False, False), (True, True), (False, False),
    ]  # fmt: skip


def test_one_machine_never_asks(monkeypatch):
    """Asking is a barrier a step; the node of the driver goes with the driver."""
    monkeypatch.setattr(snapshots.ray.train, "get_preemption_info", None)
    assert not snapshots.Preemption(possible=False)()
