"""A worker that asked Ray for a GPU computes on it, or says in a sentence that torch sees none. No Ray."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from raydr import recipes
from raydr.cluster import device, generator, latents, rescore, training, watched
from raydr.errors import UserError

SAID = f"Ray gave a GPU on node {os.uname().nodename}, and torch .* sees none there"


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    monkeypatch.delenv(device.LOGICAL_GPUS, raising=False)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def sees(monkeypatch, there):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)


def test_threads_follow_the_device_that_is_there(monkeypatch):
    sees(monkeypatch, False)
    assert (device.of_worker(False, 3), torch.get_num_threads()) == ("cpu", 3)
    monkeypatch.setenv(device.LOGICAL_GPUS, "1")
    assert (device.of_worker(True, 1), torch.get_num_threads()) == ("cpu", 1)
    sees(monkeypatch, True)
    assert (device.of_worker(True, 1), torch.get_num_threads()) == ("cuda", device.GPU_THREADS)
    assert (device.of_worker(False, 1), torch.get_num_threads()) == ("cpu", 1)


def test_no_gpu_where_one_was_promised_names_the_node(monkeypatch):
    sees(monkeypatch, False)
    with pytest.raises(UserError, match=SAID):
        device.of_worker(True, 1)


def test_generators_encoders_and_judges_say_it_where_a_stage_hears_it(monkeypatch, tmp_path):
    """On their first call: of what a constructor raises Ray gives the driver a traceback alone."""
    sees(monkeypatch, False)
    monkeypatch.setattr(watched.ray, "get_runtime_context", lambda: Context())
    url, recipe = str(tmp_path), recipes.named("debug")
    arguments = {"url": url, "recipe": recipe, "ensemble_id": "e", "gpu": True, "num_threads": 1}
    made = generator.Generate(generator.Diffusion, arguments, url, "quota", 300.0, shard_size=8)
    with pytest.raises(UserError, match=SAID):
        made({"id": np.array([0])})
    plan = '{"prompts": [], "key": "embeddings/x.parquet"}'
    (said,) = latents.Encode(url, recipe, gpu=True, num_threads=1)({"plan": np.array([plan])})["refused"]
    assert "sees none there" in said
    judge = rescore.Rescore(url, "e", (), "rescore-1", gpu=True, threads=1)
    item = '{"scores": "scores/e/x.parquet", "key": "synthetic/x.parquet"}'
    (said,) = judge({"item": np.array([item])})["answer"]
    assert "sees none there" in said


def test_a_rank_of_a_fit_leaves_it_where_the_driver_looks(monkeypatch, tmp_path):
    sees(monkeypatch, False)
    left = {}
    rank = SimpleNamespace(rank=0, world_size=1)
    monkeypatch.setattr(training, "TorchRanks", lambda: rank)
    monkeypatch.setattr(training.session, "read", lambda meter: left)
    monkeypatch.setattr(training.session, "report_to", lambda meter, wait=False, **told: left.update(told))
    settings = {"recipe": recipes.named("debug"), "url": str(tmp_path), "generators": [], "name": "a fit"}
    settings |= {"meter": "m", "gpu": True, "num_threads": 1, "base_fingerprint": ""}
    with pytest.raises(UserError, match=SAID):
        training.train_loop(settings)
    assert "sees none there" in str(training.mistake_of(settings))
    training.train_loop(settings)  # a restart does not repeat it


class Context:
    def get_node_id(self):
        return "0" * 56
