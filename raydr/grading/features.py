"""What images are compared by: uint8 (B, H, W, 3) -> float32 (B, D)."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from raydr.errors import UserError
from raydr.grades import NUM_GRADES
from raydr.grading.backbones import GradingModel
from raydr.grading.ensemble import Ensemble

Features = Callable[[np.ndarray], np.ndarray]


class GraderFeatures:
    """Inputs of the heads of an ensemble's members, side by side."""

    def __init__(self, judges: Ensemble) -> None:
        self._judges = judges
        self._seen: list[Tensor] = []
        for model in judges.models:
            head_of(model).register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        self._seen.append(arguments[0])

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        self._seen.clear()
        self._judges.probabilities(pixels)
        assert len(self._seen) == len(self._judges.models), "a head was called twice"
        return torch.cat([each.flatten(1).float() for each in self._seen], dim=1).cpu().numpy()


def head_of(model: GradingModel) -> nn.Linear:
    """The linear layer that gives the grade logits."""
    found = [each for each in model.net.modules() if isinstance(each, nn.Linear) and each.out_features == NUM_GRADES]
    assert found, "a grader without a linear head"
    return found[-1]


def inception(weights: str | Path, device: str = "cpu") -> Features:
    """InceptionV3's 2048 pooled features, which KID is published with: torch-fidelity's network and its weights' file.

    Raises UserError where the package or the file is missing, or the file holds anything else.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        raise UserError("InceptionV3's features come with torch-fidelity: pip install torch-fidelity") from None
    path = Path(weights)
    if not path.is_file():
        raise UserError(
            f"There is no file {path}: download torch-fidelity's weights-inception-2015-12-05-6726825d.pth and name it"
        )
    try:
        # Tensors only; torch-fidelity itself would unpickle whatever the file holds.
        state = torch.load(path, weights_only=True, map_location="cpu")
        with tempfile.TemporaryDirectory() as folder:
            torch.save(state, Path(folder) / "weights.pth")
            net = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(Path(folder) / "weights.pth")
            )
    except Exception as error:
        if type(error).__name__ not in ("UnpicklingError", "RuntimeError", "EOFError", "AttributeError", "TypeError"):
            raise
        raise UserError(
            f"{path} does not hold torch-fidelity's weights of InceptionV3 ({str(error).splitlines()[0][:120]})"
        ) from None
    net.to(device)

    @torch.inference_mode()
    def extract(pixels: np.ndarray) -> np.ndarray:
        images = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).to(device)
        return net(images)[0].flatten(1).float().cpu().numpy()

    return extract
