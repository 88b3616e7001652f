import pytest
import timm
import torch
from safetensors.torch import save_file

from raydr.config import Grader
from raydr.errors import MissingInput, UserError
from raydr.grading import backbones

TINY = Grader(backbone="test_resnet", px=32)


def test_equal_seeds_give_equal_weights_and_leave_the_process_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, same, other = (backbones.build(TINY, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["net.fc.weight"], other["net.fc.weight"])
    assert not torch.equal(one["net.layer1.0.conv1.weight"], other["net.layer1.0.conv1.weight"])


def test_the_model_normalises_its_input_itself():
    model = backbones.build(TINY).eval()
    images = torch.rand(2, 3, 32, 32)
    mean, std = torch.tensor([0.426, 0.298, 0.213]), torch.tensor([0.277, 0.203, 0.169])
    with torch.no_grad():
        expected = model.net((images - mean[:, None, None]) / std[:, None, None])
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)
    assert model(images).shape == (2, 5)


def test_the_posthoc_shift_acts_in_eval_mode_only():
    model = backbones.build(TINY).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        before = model(images)
        model.shift.copy_(torch.arange(5.0))
        torch.testing.assert_close(model(images), before - torch.arange(5.0))
        # both() feeds the loss, which must see the logits as they are.
        torch.testing.assert_close(model.both(images)[1], before)


def test_ldam_gets_a_cosine_head():
    model = backbones.build(Grader(backbone="test_resnet", px=32, loss="ldam", sampler="instance")).eval()
    assert isinstance(model.net.fc, backbones.CosineLinear)
    x = torch.rand(3, 96)
    expected = 30 * torch.cosine_similarity(x[:, None], model.net.fc.weight[None], dim=2)
    torch.testing.assert_close(model.net.fc(x), expected, rtol=1e-4, atol=1e-4)


def test_a_transformer_is_built_for_the_configured_side():
    model = backbones.build(Grader(backbone="test_vit", px=64)).eval()
    with torch.no_grad():
        assert model(torch.rand(1, 3, 64, 64)).shape == (1, 5)


def test_inception_is_built_without_its_auxiliary_head():
    model = backbones.build(Grader(backbone="inception_v3", px=96))
    assert model.net.AuxLogits is None
    assert model.net.transform_input
    assert isinstance(model(torch.rand(2, 3, 96, 96)), torch.Tensor)  # training mode: no tuple


def test_local_weights(tmp_path):
    torch.manual_seed(3)
    published = timm.create_model("test_resnet", num_classes=1000)  # another head, as hub weights have
    for path in (tmp_path / "a.safetensors", tmp_path / "a.pth"):
        if path.suffix == ".pth":
            torch.save({"state_dict": {f"module.{k}": v for k, v in published.state_dict().items()}}, path)
        else:
            save_file(published.state_dict(), path)
        model = backbones.build(Grader(backbone="test_resnet", px=32, weights=str(path)))
        assert torch.equal(model.net.layer4[0].conv1.weight, published.layer4[0].conv1.weight)
        assert model.net.fc.weight.shape == (5, 96)


def test_local_weights_that_do_not_fit(tmp_path):
    state = timm.create_model("test_resnet").state_dict()
    state.pop("bn1.weight")
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(UserError, match=r"1 of \d+ weights are missing or of another shape, the first is bn1.weight"):
        backbones.build(Grader(backbone="test_resnet", px=32, weights=str(tmp_path / "part.safetensors")))
    with pytest.raises(MissingInput, match="no weights file"):
        backbones.build(Grader(backbone="test_resnet", px=32, weights=str(tmp_path / "none.pth")))


@pytest.mark.parametrize("backbone", ["test_resnet", "resnet50"])
def test_published_weights_without_network(backbone, monkeypatch, tmp_path):
    """Both libraries fail with an OSError when offline; the user gets a sentence with the ways out."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr("timm.models._builder.load_pretrained", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(UserError, match=f"{backbone}.*cannot be fetched.*grader.weights"):
        backbones.build(Grader(backbone=backbone, px=32, pretrained=True))


def test_unknown_names():
    with pytest.raises(UserError, match=r"unknown backbone 'resnet10x'.*it has"):
        backbones.build(Grader(backbone="resnet10x"))
    with pytest.raises(UserError, match=r"at least 75 px, but grader\.px is 64"):
        backbones.build(Grader(backbone="inception_v3", px=64))
