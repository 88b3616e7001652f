"""What surrounds the ranks of a fit: sentences, costs, mistakes that no restart mends. No Ray is started."""

import errno
from types import SimpleNamespace

import numpy as np
import pytest
from diffusion.small import CONFIG, trainer
from diffusion.thin import build
from small_run import changed, make_run, small_recipe

from raydr import backends
from raydr.cluster import finetune, session, snapshots, training
from raydr.diffusion.model import load_base
from raydr.diffusion.state import Alone, State
from raydr.errors import LeakageError, UserError
from raydr.storage import Run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build(tmp_path_factory.mktemp("base"))


def test_what_a_refresh_took_is_told(folder):
    heard = []
    run, _ = trainer(load_base(str(folder)), kind="ecc", on_event=heard.append)
    run.run()
    refreshes = [event for event in heard if event["event"] == "ecc"]
    assert [event["step"] for event in refreshes] == [2, 4]
    steps = [event["step_seconds"] for event in heard if event["event"] == "step"]
    assert refreshes[1]["train_seconds"] == pytest.approx(sum(steps[2:4]))
    cost = training.ecc_cost(heard, CONFIG.ecc_every)
    assert cost["refresh_seconds"] == pytest.approx(np.mean([event["ecc_seconds"] for event in refreshes]))
    assert cost["train_seconds"] == pytest.approx(CONFIG.ecc_every * np.mean(steps[2:]))
    assert cost["ratio"] == pytest.approx(cost["refresh_seconds"] / cost["train_seconds"])
    assert cost["acceptance"] == 0.5
    assert training.ecc_cost([event for event in heard if event["event"] == "step"], 2) is None


def test_a_turn_and_a_copy_are_sentences():
    event = {"step": 60, "turned_at": 20, "lowest_validation": 0.1234, "validation": 0.2, "memorised": 2}
    event |= {"nearest_image_id": "DDR/7", "nearest_distance": 0.31}
    (_, turned), (_, copied) = training.notes("ecc-g1", event)
    assert "risen since step 20 (0.1234 there, 0.2000 at step 60)" in turned
    assert "2 grid images of ecc-g1 at step 60 are closer to a photograph than strangers are" in copied
    assert "DDR/7, distance 0.310" in copied
    assert training.notes("ecc-g1", {"step": 1, "memorised": 0}) == []


SETTINGS = {"meter": "m", "url": "/o", "name": "fit"}


@pytest.fixture
def meter(monkeypatch):
    """The stage's meter as a dict."""
    values = {}
    monkeypatch.setattr(session, "read", lambda name: values)
    monkeypatch.setattr(session, "report_to", lambda name, wait=False, **told: values.update(told))
    return values


def test_a_mistake_of_the_user_is_left_for_the_driver_and_not_repeated(meter, monkeypatch):
    calls = []

    def fails(settings):
        calls.append(1)
        raise LeakageError("member 0 was trained on the fold")

    monkeypatch.setattr(training, "_train", fails)
    with pytest.raises(LeakageError):
        training.train_loop(SETTINGS)
    assert type(meter["fatal:fit"]) is LeakageError
    training.train_loop(SETTINGS)  # the restarted rank
    assert calls == [1]


def test_another_error_is_restarted(meter, monkeypatch):
    monkeypatch.setattr(training, "_train", lambda settings: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        training.train_loop(SETTINGS)
    assert meter == {}


def test_a_disk_that_is_full_for_tensorboard_is_one_sentence_for_the_driver(meter, monkeypatch):
    def fails(settings):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(training, "_train", fails)
    with pytest.raises(UserError, match=r"cannot use /o: the disk is full; mend that"):
        training.train_loop(SETTINGS)
    assert "\n" not in str(meter["fatal:fit"])


HEARD = []


def uploaded(target, state, monkeypatch):
    """`snapshots.report`, as Ray Train carries it out."""
    context = SimpleNamespace(get_storage=lambda: SimpleNamespace(experiment_fs_path="/x", storage_filesystem=None))
    monkeypatch.setattr(snapshots.ray.train, "get_context", lambda: context)

    def report(metrics, checkpoint, checkpoint_dir_name, checkpoint_upload_fn, **_):
        return checkpoint_upload_fn(checkpoint, checkpoint_dir_name)

    monkeypatch.setattr(snapshots.ray.train, "report", report)
    snapshots.report(Alone(), target, "fit", "plain-g1", state, True, HEARD.append)


def test_a_full_disk_at_a_snapshot_is_one_sentence_and_keeps_the_last_good_one(tmp_path, monkeypatch):
    target = Run(str(tmp_path / "out"))
    uploaded(target, State(2), monkeypatch)
    monkeypatch.setattr(backends, "_hits", {})
    monkeypatch.setenv("RAYDR_FAILPOINT", "before_fsync:enospc")
    with pytest.raises(UserError, match="full") as caught:
        uploaded(target, State(4), monkeypatch)
    assert "\n" not in str(caught.value)
    assert [caught.value] == HEARD  # the thread that uploads is not the one that trains
    monkeypatch.delenv("RAYDR_FAILPOINT")
    assert snapshots.newest(target, "plain-g1", Alone()).step == 2
    uploaded(target, State(4), monkeypatch)
    assert snapshots.newest(target, "plain-g1", Alone()).step == 4


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    recipe = changed(small_recipe(), finetune={"base": str(folder)})
    return recipe, make_run(tmp_path_factory.mktemp("run") / "out", recipe, samples_per_grade=1)


def test_what_cannot_be_fine_tuned_is_said_before_ray_starts(run, tmp_path):
    recipe, target = run
    finetune.ready(recipe, target)
    with pytest.raises(UserError, match="There is no folder"):
        finetune.ready(changed(recipe, finetune={"base": str(tmp_path / "nothing")}), target)


def test_a_grade_without_photographs_is_said_before_ray_starts(run, monkeypatch):
    recipe, target = run
    monkeypatch.setattr(finetune.selection, "part_of", lambda real, part, fold: np.arange(24))  # healthy eyes alone
    with pytest.raises(UserError, match="no training photograph of grade 1"):
        finetune.ready(recipe, target)
