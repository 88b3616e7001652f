"""LANet's equations against a slow, literal computation with the backbone run by hand around the cut."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F

from raydr.config import Grader
from raydr.errors import UserError
from raydr.grading import backbones, lanet


def literal(features, weight, bias, convolution, wrap=None):
    """F' and z_bin of paper.md 7, image by image and channel by channel, in float64."""
    if wrap is not None:
        features = wrap(features)
    features, weight, bias = features.double(), weight.double(), bias.double()
    z_bin, attended = [], []
    for image in features:
        gap = torch.stack([channel.mean() for channel in image])
        z = torch.stack([(weight[row] * gap).sum() + bias[row] for row in range(2)])
        k = int(z.argmax())
        response = sum(weight[k, c] * image[c] for c in range(len(image))) / len(image)
        low, high = response.min(), response.max()
        a = torch.zeros_like(response) if high == low else (response - low) / (high - low)
        z_bin.append(z)
        attended.append(torch.cat([a * image, image]))
    return F.conv2d(torch.stack(attended), convolution.double()).float(), torch.stack(z_bin).float()


def without_hooks(model):
    """A copy whose backbone is torchvision's or timm's own: calling its stages attends nothing."""
    bare = copy.deepcopy(model)
    hooks = [module._forward_hooks for module in bare.modules() if module._forward_hooks]
    assert len(hooks) == 1
    hooks[0].clear()
    return bare.net, bare.net.backbone


def run_by_hand(name, model, x):
    """The published cuts, with the rest of torchvision's forward pass written out."""
    net, b = without_hooks(model)
    own = (net.fc_clf.weight, net.fc_clf.bias, net.reduce_dim.weight)
    if name == "vgg16_bn":
        f, z = literal(b.features[:33](x), *own)  # after relu4_3, before pool4
        return z, b.classifier(b.avgpool(b.features[33:](f)).flatten(1))
    if name == "densenet121":
        cut = list(b.features.named_children())
        at = [child for child, _ in cut].index("denseblock3") + 1
        f, z = literal(b.features[:at](x), *own, wrap=lambda f: F.relu(net.bn_clf(f)))
        return z, b.classifier(F.relu(b.features[at:](f)).mean((2, 3)))
    if name == "resnet50":
        x = b.layer3(b.layer2(b.layer1(b.maxpool(b.relu(b.bn1(b.conv1(x)))))))
        f, z = literal(x, *own)
        return z, b.fc(b.layer4(f).mean((2, 3)))
    # transform_input: torchvision's own correction for weights made with another normalisation.
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = x * (std / 0.5)[:, None, None] + ((mean - 0.5) / 0.5)[:, None, None]
    children = dict(b.named_children())
    names = [child for child in children if child not in ("AuxLogits", "avgpool", "dropout", "fc")]
    for child in names[: names.index("Mixed_6e") + 1]:
        x = children[child](x)
    f, z = literal(x, *own)
    for child in names[names.index("Mixed_6e") + 1 :]:
        f = children[child](f)
    return z, b.fc(f.mean((2, 3)))


@pytest.mark.parametrize(
    ("name", "px", "channels"),
    [("vgg16_bn", 64, 512), ("densenet121", 64, 1024), ("resnet50", 64, 1024), ("inception_v3", 96, 768)],
)
def test_the_papers_cuts(name, px, channels):
    model = backbones.build(Grader(backbone=name, head="lanet", px=px), seed=1).eval()
    images = torch.rand(2, 3, px, px, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        z, logits = run_by_hand(name, model, model.normalise(images))
        binary, grades = model.both(images)
        plain = model(images)
    torch.testing.assert_close(binary, z, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(grades, logits, rtol=1e-3, atol=1e-4)
    assert torch.equal(plain, grades)
    assert tuple(model.net.reduce_dim.weight.shape) == (channels, 2 * channels, 1, 1)
    assert (model.net.bn_clf is not None) == (name == "densenet121")


def test_a_timm_backbone_is_cut_at_its_named_stage():
    grader = Grader(backbone="test_resnet", head="lanet", px=32, lanet_stage="layer2")
    model = backbones.build(grader, seed=2).eval()
    net, b = without_hooks(model)
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        x = b.maxpool(b.act1(b.bn1(b.conv1(model.normalise(images)))))
        f, z = literal(b.layer2(b.layer1(x)), net.fc_clf.weight, net.fc_clf.bias, net.reduce_dim.weight)
        expected = b.fc(b.global_pool(b.layer4(b.layer3(f))))
        binary, logits = model.both(images)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(binary, z, rtol=1e-4, atol=1e-5)


def test_without_a_name_the_last_stage_but_one_is_cut():
    model = backbones.build(Grader(backbone="test_resnet", head="lanet", px=32))
    channels = timm.create_model("test_resnet").feature_info[-2]["num_chs"]
    assert model.net.reduce_dim.weight.shape[0] == channels == 192


def test_attention_by_hand():
    features = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 8.0]]]])
    weight = torch.tensor([[9.0, 9.0], [1.0, -1.0]])
    # mean over channels of W[1,c] F_c: (1, 2, 3, 4 - 8) / 2 = .5, 1, 1.5, -2; then min-max.
    a = lanet.attention(features, weight, torch.tensor([1]))
    torch.testing.assert_close(a[0, 0], torch.tensor([[2.5, 3.0], [3.5, 0.0]]) / 3.5)


def test_attention_is_zero_and_differentiable_where_constant():
    features = torch.full((1, 2, 3, 3), 0.7, requires_grad=True)
    a = lanet.attention(features, torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([0]))
    assert (a == 0).all()
    a.sum().backward()
    assert torch.isfinite(features.grad).all()


def test_each_image_is_attended_on_its_own():
    model = backbones.build(Grader(backbone="test_resnet", head="lanet", px=32)).eval()
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        together, alone = model(images), torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_a_copy_attends_with_its_own_weights():
    model = backbones.build(Grader(backbone="test_resnet", head="lanet", px=32)).eval()
    twin, images = copy.deepcopy(model), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        before = model(images)
        twin.net.reduce_dim.weight.zero_()
        assert torch.equal(model(images), before)
        assert not torch.allclose(twin(images), before)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"backbone": "test_resnet", "lanet_stage": "layer9"}, "no module 'layer9': try .*layer3"),
        ({"backbone": "test_vit", "px": 64, "lanet_stage": "blocks.1"}, "gives no feature map"),
        ({"backbone": "resnet50", "px": 64, "lanet_stage": "layer2"}, "cut where the paper does"),
    ],
)
def test_refusals(settings, words):
    with pytest.raises(UserError, match=words):
        backbones.build(Grader(**{"head": "lanet", "px": 32} | settings))
