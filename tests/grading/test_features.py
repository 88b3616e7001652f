import dataclasses
import pickle

import numpy as np
import pytest
import torch

from grading.blobs import blobs
from raydr.config import Grader
from raydr.errors import UserError
from raydr.grading import features
from raydr.grading.backbones import build
from raydr.grading.ensemble import Ensemble, Meta

TINY = Grader(backbone="test_resnet", px=32, steps=1, batch=10)
PIXELS, _ = blobs(6)


@pytest.mark.parametrize("changes", [{}, {"head": "lanet"}, {"loss": "ldam", "sampler": "instance"}, {"px": 24}])
def test_the_head_on_the_features_gives_the_verdict(changes):
    grader = dataclasses.replace(TINY, **changes)
    model = build(grader, seed=4).eval()
    judges = Ensemble([(model, Meta("a", grader, 0))])
    seen = features.GraderFeatures(judges)(PIXELS)
    assert (seen.shape[0], seen.dtype) == (6, np.float32)
    with torch.inference_mode():
        logits = features.head_of(model)(torch.from_numpy(seen))
    expected = judges.probabilities(PIXELS)[:, 0]
    assert np.allclose(torch.softmax(logits, dim=1).numpy(), expected, atol=1e-5)


def test_members_stand_side_by_side():
    models = [(build(TINY, seed=seed).eval(), Meta(str(seed), TINY, seed)) for seed in (1, 2)]
    both = features.GraderFeatures(Ensemble(models))(PIXELS)
    one, other = (features.GraderFeatures(Ensemble([model]))(PIXELS) for model in models)
    assert np.array_equal(both, np.concatenate([one, other], axis=1))


def test_inception_needs_its_weights(tmp_path):
    pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed")
    with pytest.raises(UserError, match=r"There is no file .*download torch-fidelity's weights"):
        features.inception(tmp_path / "absent.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(UserError, match="does not hold torch-fidelity's weights"):
        features.inception(tmp_path / "text.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="does not hold torch-fidelity's weights"):
        features.inception(tmp_path / "other.pth")


class Touch:
    """Unpickled, it would leave a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_file_of_weights_is_never_unpickled(tmp_path):
    pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed")
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Touch(tmp_path / "opened")))
    with pytest.raises(UserError, match="does not hold"):
        features.inception(tmp_path / "evil.pth")
    assert not (tmp_path / "opened").exists()


def test_without_the_package_it_is_one_sentence(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(UserError, match="pip install torch-fidelity"):
        features.inception(tmp_path / "w.pth")


@pytest.mark.slow
def test_inception_of_random_weights(tmp_path, monkeypatch):
    """Its own network with drawn weights: the file is read, and an image gives 2048 numbers."""
    module = pytest.importorskip(
        "torch_fidelity.feature_extractor_inceptionv3", reason="torch-fidelity is not installed"
    )
    cls = module.FeatureExtractorInceptionV3
    monkeypatch.setattr(module, "load_state_dict_from_url", lambda *a, **k: {})
    with monkeypatch.context() as patch:
        patch.setattr(cls, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        drawn = cls("inception-v3-compat", ["2048"])
    torch.save(drawn.state_dict(), tmp_path / "w.pth")
    found = features.inception(tmp_path / "w.pth")(PIXELS[:2])
    assert (found.shape, found.dtype) == ((2, 2048), np.float32)
    assert np.allclose(found, drawn(torch.from_numpy(PIXELS[:2]).permute(0, 3, 1, 2))[0].numpy(), atol=1e-5)
