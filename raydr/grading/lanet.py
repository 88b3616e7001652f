"""LANet: lesion-aware attention between two stages of any backbone (Hou et al., ICASSP 2023; paper.md 7).

With F (B, C, h, w) what the cut stage gives, and W (2, C), b the binary head:

    z_bin = W GAP(F) + b                                  no DR against DR
    k     = argmax z_bin
    A     = minmax_per_image( mean_c W[k,c] F_c )         zeros where constant
    F'    = Conv1x1( [A * F ; F] )                        the rest of the backbone goes on with F'
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attention(features: Tensor, weight: Tensor, winner: Tensor) -> Tensor:
    """A (B, 1, h, w) in [0, 1] of `features` (B, C, h, w), `weight` (2, C), `winner` int64 (B,); float32."""
    response = torch.einsum("bchw,bc->bhw", features.float(), weight[winner].float()) / features.shape[1]
    low, high = response.amin(dim=(1, 2), keepdim=True), response.amax(dim=(1, 2), keepdim=True)
    span = high - low
    return ((response - low) / torch.where(span > 0, span, 1.0))[:, None]


class LANet(nn.Module):
    """A backbone with a 5-way head whose module `stage` has its output attended.

    The attention sits in a forward hook, so that the backbone keeps its parameters' names (published
    checkpoints use torchvision's) and the rest of its forward pass. `channels` is the stage's C; `norm`
    puts BatchNorm + ReLU before the attention (DenseNet's blocks end without them).
    """

    def __init__(self, backbone: nn.Module, stage: str, channels: int, norm: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        self.bn_clf = nn.BatchNorm2d(channels) if norm else None
        self.fc_clf = nn.Linear(channels, 2)
        self.reduce_dim = nn.Conv2d(2 * channels, channels, kernel_size=1, bias=False)
        # s1, s2 of the adaptive joint loss; here because they are learnt with the rest.
        self.sigma1 = nn.Parameter(torch.zeros(()))
        self.sigma2 = nn.Parameter(torch.zeros(()))
        self._binary: Tensor | None = None
        backbone.get_submodule(stage).register_forward_hook(self._attend)

    def _attend(self, module: nn.Module, args: tuple, features: Tensor) -> Tensor:
        if self.bn_clf is not None:
            features = F.relu(self.bn_clf(features))
        self._binary = self.fc_clf(features.mean(dim=(2, 3)))
        attended = attention(features, self.fc_clf.weight, self._binary.argmax(dim=1)).to(features.dtype) * features
        return self.reduce_dim(torch.cat([attended, features], dim=1))

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the binary head (B, 2) and of the grades (B, 5)."""
        logits = self.backbone(images)
        binary, self._binary = self._binary, None
        assert binary is not None, "the backbone never ran the attended stage"
        return binary, logits

    def forward(self, images: Tensor) -> Tensor:
        return self.both(images)[1]
