"""Published LANet checkpoints (paper.md 7) as members: paper mode only, for they mix outer folds."""

import re
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from raydr import config
from raydr.errors import UserError
from raydr.grading.backbones import TORCHVISION, GradingModel, build
from raydr.grading.ensemble import Meta, save_member
from raydr.grading.weights import read_state_dict

# Parameters that LANet adds around torchvision's backbone, and their names in the published files.
OWN = ("fc_clf.", "reduce_dim.", "bn_clf.", "sigma1", "sigma2")
# Without these two the model still predicts the same: they weigh the training loss.
OPTIONAL = ("net.sigma1", "net.sigma2")
# torchvision before 0.3 named DenseNet's layers `norm.1`; a period is no longer allowed there.
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")


@dataclass(frozen=True)
class ImportReport:
    """What fitted and what did not; names as in the file for `unexpected`, as in the model else."""

    num_loaded: int
    missing: tuple[str, ...]  # in the model, not in the file
    unexpected: tuple[str, ...]  # in the file, not in the model
    mismatched: tuple[str, ...]  # in both, of different shapes: "name: file (5, 10), model (5, 20)"

    @property
    def complete(self) -> bool:
        """Whether every weight that the predictions depend on came from the file."""
        return not self.mismatched and set(self.missing) <= set(OPTIONAL)

    def __str__(self) -> str:
        lines = [f"{self.num_loaded} tensors fit"]
        for what, names in (
            ("missing from the file", self.missing),
            ("of another shape", self.mismatched),
            ("in the file but not in the model", self.unexpected),
        ):
            if names:
                lines.append(f"{len(names)} {what}: {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}")
        return "; ".join(lines)


def own_name(name: str, backbone: str) -> str:
    """A published parameter's name in our `GradingModel`."""
    if name.startswith(OWN):
        return f"net.{name}"
    if backbone == "resnet50" and name.startswith("fc_grad."):
        name = name.replace("fc_grad.", "fc.", 1)
    elif backbone == "densenet121":
        name = OLD_DENSENET.sub(r"\1\2", name)
    return f"net.backbone.{name}"


def import_checkpoint(
    path: str | Path, backbone: str, px: int = 512, strict: bool = True
) -> tuple[GradingModel, ImportReport]:
    """A published LANet checkpoint on one of the paper's four backbones, in eval mode, and what fitted.

    Reads `{"net": state_dict}` or a bare state dict, torch (weights only: no code of the file runs) or
    safetensors, with or without `module.`. `strict` raises UserError with the report if a weight that the
    predictions depend on is missing or of another shape; else such weights keep their random start.
    """
    if backbone not in TORCHVISION:
        raise UserError(f"published LANet checkpoints are for {', '.join(TORCHVISION)}, not {backbone!r}")
    published = read_state_dict(path)
    if backbone == "resnet50" and "fc_grad.weight" in published:
        # ImageNet's head travels along unused in such files; it must not meet `fc_grad` under one name.
        published = {name: value for name, value in published.items() if not name.startswith("fc.")}
    model = build(config.Grader(backbone=backbone, head="lanet", px=px))
    own = model.state_dict()
    fitting: dict[str, Tensor] = {}
    unexpected: list[str] = []
    mismatched: dict[str, str] = {}
    for name, value in published.items():
        target = own_name(name, backbone)
        if target not in own:
            unexpected.append(name)
        elif value.shape == own[target].shape or _same_but_for_ones(value, own[target]):
            fitting[target] = value.reshape(own[target].shape)
        else:
            mismatched[target] = f"{name}: file {tuple(value.shape)}, model {tuple(own[target].shape)}"
    missing = [
        name
        for name in own
        if name.startswith("net.")
        and name not in fitting
        and name not in mismatched
        and not name.endswith("num_batches_tracked")
    ]
    model.load_state_dict(fitting, strict=False)
    report = ImportReport(len(fitting), tuple(missing), tuple(unexpected), tuple(mismatched.values()))
    if strict and not report.complete:
        raise UserError(f"{path} does not fit LANet on {backbone}: {report}")
    return model.eval(), report


def import_member(path: str | Path, backbone: str, folder: str | Path, px: int = 512) -> ImportReport:
    """Write a published checkpoint as an ensemble member of role "score" to `folder`, named after it.

    Its record says "imported": `ensemble.check_leakage` refuses it wherever leakage must be excluded.
    """
    model, report = import_checkpoint(path, backbone, px)
    grader = config.Grader(backbone=backbone, head="lanet", px=px)
    save_member(folder, model, Meta(Path(folder).name, grader, seed=0, provenance="imported"))
    return report


def _same_but_for_ones(one: Tensor, other: Tensor) -> bool:
    """(2, 512, 1, 1) fits (2, 512), (1,) fits (): a linear layer written as a 1x1 convolution, a scalar."""
    return [side for side in one.shape if side != 1] == [side for side in other.shape if side != 1]
