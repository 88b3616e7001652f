"""Files with the names and shapes of the published LANet checkpoints, made here."""

import pickle

import numpy as np
import pytest
import torch

from raydr.config import Grader
from raydr.errors import LeakageError, MissingInput, UserError
from raydr.grading import backbones, checkpoints, ensemble

# Published name of the head against torchvision's.
HEADS = {"vgg16_bn": "classifier.6", "densenet121": "classifier", "inception_v3": "fc", "resnet50": "fc_grad"}


def published(backbone: str, px: int = 96) -> tuple[backbones.GradingModel, dict]:
    """A model with weights of its own, and its state dict under the published names."""
    model = backbones.build(Grader(backbone=backbone, head="lanet", px=px), seed=11).eval()
    with torch.no_grad():  # running statistics and scalars that differ from every fresh model's
        for name, value in model.named_buffers():
            if "running" in name:
                value.uniform_(0.5, 1.5)
        model.net.sigma1.fill_(0.25)
    state = {}
    for name, value in model.net.state_dict().items():
        name = name.removeprefix("backbone.")
        if backbone == "resnet50" and name.startswith("fc."):
            name = name.replace("fc.", "fc_grad.")
        state[f"module.{name}"] = value.clone()
    return model, state


@pytest.mark.parametrize(
    "backbone", ["densenet121", "inception_v3", "resnet50", pytest.param("vgg16_bn", marks=pytest.mark.slow)]
)
def test_round_trip(backbone, tmp_path):
    model, state = published(backbone)
    assert f"module.{HEADS[backbone]}.weight" in state
    assert {"module.fc_clf.weight", "module.fc_clf.bias", "module.reduce_dim.weight", "module.sigma1"} <= set(state)
    if backbone == "resnet50":
        state["module.fc.weight"], state["module.fc.bias"] = torch.zeros(1000, 2048), torch.zeros(1000)
    torch.save({"net": state, "acc": 0.8, "epoch": 99}, tmp_path / "best.pth")
    imported, report = checkpoints.import_checkpoint(tmp_path / "best.pth", backbone, px=96)
    assert report.complete
    assert report.missing == report.mismatched == ()
    images = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(imported(images), model(images))
    assert imported.net.sigma1.item() == 0.25


def test_an_imported_member_judges_but_proves_nothing(tmp_path):
    model, state = published("resnet50")
    torch.save({"net": state}, tmp_path / "best.pth")
    report = checkpoints.import_member(tmp_path / "best.pth", "resnet50", tmp_path / "members" / "hou", px=96)
    assert report.complete
    judges = ensemble.Ensemble.load(tmp_path / "members")
    images = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        expected = model(images).softmax(1).numpy()
    np.testing.assert_allclose(judges.probabilities(images)[:, 0], expected, atol=1e-6)
    with pytest.raises(LeakageError, match="'hou' was imported"):
        ensemble.check_leakage(judges.metas[0], [], "test")


def test_old_names_and_shapes(tmp_path):
    """DenseNet's `norm.1`, a binary head written as a convolution, sigmas of shape (1,)."""
    model, state = published("densenet121")
    state = {
        name.replace("denselayer1.norm1.", "denselayer1.norm.1.").replace(
            "denselayer1.conv2.", "denselayer1.conv.2."
        ): value
        for name, value in state.items()
    }
    state["module.fc_clf.weight"] = state["module.fc_clf.weight"][:, :, None, None]
    state["module.sigma1"] = state["module.sigma1"][None]
    torch.save({"net": state}, tmp_path / "old.pth")
    imported, report = checkpoints.import_checkpoint(tmp_path / "old.pth", "densenet121", px=96)
    assert report.complete
    images = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(imported(images), model(images))


def test_what_does_not_fit_is_reported(tmp_path):
    _, state = published("resnet50")
    state["module.fc_grad.weight"] = torch.zeros(2, 2048)
    del state["module.reduce_dim.weight"], state["module.sigma2"]
    state["module.extra.weight"] = torch.zeros(3)
    torch.save({"net": state}, tmp_path / "odd.pth")
    with pytest.raises(
        UserError,
        match=r"not fit LANet on resnet50: .*reduce_dim.weight.*fc_grad.weight: file \(2, 2048\), model \(5, 2048\)",
    ):
        checkpoints.import_checkpoint(tmp_path / "odd.pth", "resnet50", px=96)
    _, report = checkpoints.import_checkpoint(tmp_path / "odd.pth", "resnet50", px=96, strict=False)
    assert not report.complete
    assert report.missing == ("net.sigma2", "net.reduce_dim.weight")
    assert report.unexpected == ("extra.weight",)
    assert report.mismatched == ("fc_grad.weight: file (2, 2048), model (5, 2048)",)
    assert report.num_loaded == len([name for name in state if "extra" not in name and "fc_grad.weight" not in name])


def test_a_checkpoint_of_another_backbone(tmp_path):
    _, state = published("densenet121")
    torch.save({"net": state}, tmp_path / "dense.pth")
    with pytest.raises(UserError, match="does not fit LANet on resnet50"):
        checkpoints.import_checkpoint(tmp_path / "dense.pth", "resnet50", px=96)
    with pytest.raises(UserError, match="published LANet checkpoints are for vgg16_bn"):
        checkpoints.import_checkpoint(tmp_path / "dense.pth", "resnet10t")


class Payload:
    def __reduce__(self):
        return eval, ("(_ for _ in ()).throw(RuntimeError('code of the file ran'))",)


def test_a_file_that_would_run_code_is_refused(tmp_path):
    torch.save({"net": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="without running code"):
        checkpoints.import_checkpoint(tmp_path / "evil.pth", "resnet50")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"net": Payload()}, protocol=2))
    with pytest.raises(UserError, match="without running code"):
        checkpoints.import_checkpoint(tmp_path / "plain.pth", "resnet50")


def test_files_that_are_no_weights(tmp_path):
    torch.save({"net": {"epoch": 3}}, tmp_path / "empty.pth")
    with pytest.raises(UserError, match="holds no state dict"):
        checkpoints.import_checkpoint(tmp_path / "empty.pth", "resnet50")
    for name in ("noise.pth", "noise.safetensors"):
        (tmp_path / name).write_bytes(b"not weights at all")
        with pytest.raises(UserError, match="cannot be read"):
            checkpoints.import_checkpoint(tmp_path / name, "resnet50")
    with pytest.raises(MissingInput, match="no weights file"):
        checkpoints.import_checkpoint(tmp_path / "absent.pth", "resnet50")
