"""Graders as modules: any timm backbone, or the paper's four from torchvision, plain or with LANet.

A grader takes float images (B, 3, px, px) in [0, 1], normalises them itself and gives five logits, so
that nobody who loads one has to know the constants.
"""

from collections.abc import Callable

import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from raydr import config
from raydr.errors import UserError
from raydr.grades import NUM_GRADES
from raydr.grading.lanet import LANet
from raydr.grading.losses import LDAM_SCALE
from raydr.grading.pixels import affine
from raydr.grading.weights import read_state_dict
from raydr.identity import seed_of

# Channel means and deviations of the fundus photographs the published graders were trained on (paper.md 4).
MEAN = (0.426, 0.298, 0.213)
STD = (0.277, 0.203, 0.169)

# torchvision's four: the 5-way head, LANet's cut, its channels, and the least side it runs at.
# timm's VGG differs by 8.6 % at 512 px with the same weights, and its inception_v3 has no transform_input.
TORCHVISION = {
    "vgg16_bn": ("classifier.6", "features.32", 512, 32),
    "densenet121": ("classifier", "features.denseblock3", 1024, 32),
    "inception_v3": ("fc", "Mixed_6e", 768, 75),
    "resnet50": ("fc", "layer3", 1024, 32),
}


def is_known(backbone: str) -> bool:
    """Whether `build` knows a backbone of this name; no weight is touched."""
    return backbone in TORCHVISION or bool(timm.is_model(backbone))


class CosineLinear(nn.Linear):
    """scale x cosine between features and class weights: the head that LDAM's margins are defined on."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        return LDAM_SCALE * F.linear(F.normalize(input), F.normalize(self.weight))


class GradingModel(nn.Module):
    """`net` behind its normalisation. Called in eval mode it subtracts `shift`, the post-hoc prior."""

    def __init__(self, net: nn.Module, px: int) -> None:
        super().__init__()
        self.net = net
        self.px = px
        std = torch.tensor(STD)
        self.register_buffer("scale", 1 / std)
        self.register_buffer("bias", -torch.tensor(MEAN) / std)
        self.register_buffer("shift", torch.zeros(NUM_GRADES))

    scale: Tensor
    bias: Tensor
    shift: Tensor

    def normalise(self, images: Tensor) -> Tensor:
        return affine(images, self.scale, self.bias)

    def both(self, images: Tensor) -> tuple[Tensor | None, Tensor]:
        """Binary logits (B, 2), None without LANet, and grade logits (B, 5), for training."""
        images = self.normalise(images)
        return self.net.both(images) if isinstance(self.net, LANet) else (None, self.net(images))

    def forward(self, images: Tensor) -> Tensor:
        """float (B, 3, px, px) in [0, 1] -> logits (B, 5)."""
        logits = self.net(self.normalise(images))
        return logits if self.training else logits - self.shift


def build(grader: config.Grader, num_classes: int = NUM_GRADES, seed: int = 0) -> GradingModel:
    """The grader of a configuration on the CPU, in training mode; equal weights for equal seeds.

    Raises UserError for a name neither library knows, a stage that cannot be attended, a side too
    small for the backbone, and published weights that cannot be fetched.
    """
    with torch.random.fork_rng(devices=[]):
        # The CPU's generator alone: torch.manual_seed would also reseed the GPUs, which fork_rng leaves out.
        torch.default_generator.manual_seed(seed_of("grader-weights", seed))
        net, head = _torchvision(grader) if grader.backbone in TORCHVISION else _timm(grader)
        if grader.weights:
            _load_local(net, grader.weights, head)
        old = net.get_submodule(head)
        if not isinstance(old, nn.Linear):
            raise UserError(f"backbone {grader.backbone!r} ends in {type(old).__name__}, not a linear layer")
        new: nn.Linear = (
            CosineLinear(old.in_features, num_classes)
            if grader.loss.startswith("ldam")
            else nn.Linear(old.in_features, num_classes)
        )
        net.set_submodule(head, new)
        if grader.head == "lanet":
            net = _attended(net, grader)
    return GradingModel(net, grader.px).to(memory_format=torch.channels_last)


def _fetch(make: Callable[[], nn.Module], name: str) -> nn.Module:
    try:
        return make()
    except OSError as error:
        raise UserError(
            f"the published weights of {name!r} cannot be fetched: connect to the network once, give "
            f"grader.weights a local file, or set grader.pretrained to false"
        ) from error


def _torchvision(grader: config.Grader) -> tuple[nn.Module, str]:
    head, _, _, least = TORCHVISION[grader.backbone]
    if grader.px < least:
        raise UserError(f"{grader.backbone} needs images of at least {least} px, but grader.px is {grader.px}")
    options: dict = {"weights": "IMAGENET1K_V1" if grader.pretrained else None}
    if grader.backbone == "inception_v3" and not grader.pretrained:
        # Published weights bring both settings themselves and torchvision refuses to be told otherwise.
        options |= {"transform_input": True, "init_weights": True}
    net = _fetch(lambda: torchvision.models.get_model(grader.backbone, **options), grader.backbone)
    if grader.backbone == "inception_v3":
        assert isinstance(net, torchvision.models.Inception3)
        net.aux_logits, net.AuxLogits = False, None
    return net, head


def _timm(grader: config.Grader) -> tuple[nn.Module, str]:
    if not timm.is_model(grader.backbone):
        near = ", ".join(timm.list_models(f"*{grader.backbone[:6]}*")[:5])
        raise UserError(
            f"unknown backbone {grader.backbone!r}: timm has no such model" + (f" (it has {near})" if near else "")
        )
    # Transformers with position embeddings must be told the side; convolutional models refuse the argument.
    configuration = timm.get_pretrained_cfg(grader.backbone)
    options: dict = {"img_size": grader.px} if configuration is not None and configuration.fixed_input_size else {}
    net = _fetch(lambda: timm.create_model(grader.backbone, pretrained=grader.pretrained, **options), grader.backbone)
    head = configuration.classifier if configuration is not None else None
    if not isinstance(head, str):
        raise UserError(f"backbone {grader.backbone!r} does not have exactly one head: use another")
    return net, head


def _load_local(net: nn.Module, path: str, head: str) -> None:
    state = {k: v for k, v in read_state_dict(path).items() if not k.startswith(f"{head}.")}
    own = {k: v for k, v in net.state_dict().items() if not k.startswith(f"{head}.")}
    wrong = [k for k, v in own.items() if k not in state or state[k].shape != v.shape]
    wrong = [k for k in wrong if not k.endswith("num_batches_tracked")]
    if wrong:
        raise UserError(
            f"{path} does not fit the backbone: {len(wrong)} of {len(own)} weights are missing or of another shape, "
            f"the first is {wrong[0]}"
        )
    net.load_state_dict({k: v for k, v in state.items() if k in own}, strict=False)


def _attended(net: nn.Module, grader: config.Grader) -> LANet:
    if grader.backbone in TORCHVISION:
        if grader.lanet_stage:
            raise UserError(f"grader.lanet_stage is for timm backbones: {grader.backbone} is cut where the paper does")
        _, stage, channels, _ = TORCHVISION[grader.backbone]
        return LANet(net, stage, channels, norm=grader.backbone == "densenet121")
    stage = grader.lanet_stage
    if not stage:
        info = getattr(net, "feature_info", None)
        if not info or len(info) < 2:
            raise UserError(f"timm lists no feature stages for {grader.backbone!r}: name one in grader.lanet_stage")
        stage = info[-2]["module"]
    return LANet(net, stage, _stage_channels(net, stage, grader))


def _stage_channels(net: nn.Module, stage: str, grader: config.Grader) -> int:
    """Channels of what `stage` gives, from one empty image: names in timm say nothing of the shape."""
    if stage not in dict(net.named_modules()):
        names = ", ".join(item["module"] for item in getattr(net, "feature_info", []))
        raise UserError(f"backbone {grader.backbone!r} has no module {stage!r}" + (f": try {names}" if names else ""))
    shapes: list[torch.Size] = []
    hook = net.get_submodule(stage).register_forward_hook(lambda module, args, output: shapes.append(output.shape))
    training = net.training
    with torch.no_grad():
        net.eval()(torch.zeros(1, 3, grader.px, grader.px))
    net.train(training)
    hook.remove()
    if not shapes or len(shapes[0]) != 4:
        raise UserError(f"{stage!r} of {grader.backbone!r} gives no feature map (batch, channels, height, width)")
    return shapes[0][1]
