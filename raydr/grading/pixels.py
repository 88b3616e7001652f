"""From stored uint8 pixels to model input on the device, resized and augmented, without a loop over images.

Pixels are uint8 (B, H, W, 3) as stored; inputs are float32 (B, 3, px, px) in [0, 1] in channels-last
memory, which is the stored order, so that conversion never transposes. Random numbers are drawn on the
CPU by the caller's generator and are the same on every device.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Light augmentation at any size: shift as a share of the side, and the jitter's standard ranges.
SHIFT = 0.06
BRIGHTNESS = 0.12
CONTRAST = 0.2
COLOUR = 0.08


def to_input(pixels: Tensor, px: int, device: str | torch.device = "cpu") -> Tensor:
    """uint8 (B, H, W, 3) -> float32 (B, 3, px, px) in [0, 1] on `device`, resized there if it must be."""
    images = pixels.to(device, non_blocking=True).permute(0, 3, 1, 2).to(torch.float32).div_(255)
    return resize(images, px)


def resize(images: Tensor, px: int) -> Tensor:
    """Float (B, 3, H, W) -> (B, 3, px, px) by an antialiased bilinear filter; the same tensor if it fits."""
    if images.shape[-2:] == (px, px):
        return images
    return F.interpolate(images, size=(px, px), mode="bilinear", antialias=True, align_corners=False)


def augment(images: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Augmented float images (B, 3, px, px); `generator` lives on the CPU and advances by a fixed amount.

    "light": one of the eight symmetries of the square (exact: a microaneurysm is one pixel at 64 px and
    an interpolated rotation would blur it away), a shift by whole pixels up to 6 % of the side, and
    brightness, contrast and colour jitter. "paper" (paper.md 7): flips, a crop of area .8-1.2 and aspect
    .8-1.2 of a photograph 640/512 as large, and a rotation by any angle, in one bilinear resampling.
    """
    if kind == "none":
        return images
    return _light(images, generator) if kind == "light" else _paper(images, generator)


def _light(images: Tensor, generator: torch.Generator) -> Tensor:
    batch, _, px, _ = images.shape
    device = images.device
    flip = torch.rand(batch, 3, generator=generator).to(device) < 0.5
    reach = max(1, round(SHIFT * px))
    shift = torch.randint(-reach, reach + 1, (batch, 2), generator=generator).to(device)
    jitter = torch.rand(batch, 5, generator=generator).to(device) * 2 - 1

    # Rows and columns to read: mirrored where flipped, moved, and held at the (black) rim.
    line = torch.arange(px, device=device)
    index = torch.where(flip[:, :2, None], px - 1 - line, line) + shift[:, :, None]
    index = index.clamp_(0, px - 1)
    pixels = images.permute(0, 2, 3, 1)
    pixels = pixels[torch.arange(batch, device=device)[:, None, None], index[:, 0, :, None], index[:, 1, None, :]]
    pixels = torch.where(flip[:, 2, None, None, None], pixels.transpose(1, 2), pixels)

    contrast = 1 + CONTRAST * jitter[:, :1]
    gain = contrast * (1 + COLOUR * jitter[:, 2:])
    mean = pixels.mean(dim=(1, 2))
    offset = mean * (1 + BRIGHTNESS * jitter[:, 1:2]) - gain * mean
    pixels = torch.addcmul(offset[:, None, None], pixels, gain[:, None, None]).clamp_(0, 1)
    return pixels.permute(0, 3, 1, 2)


def _paper(images: Tensor, generator: torch.Generator) -> Tensor:
    batch = images.shape[0]
    draw = torch.rand(batch, 7, generator=generator)
    angle = (draw[:, 0] * 2 - 1) * math.pi
    area = 0.8 + 0.4 * draw[:, 1]
    # Uniform in the logarithm, as torchvision's RandomResizedCrop.
    aspect = torch.exp(math.log(0.8) + (math.log(1.2) - math.log(0.8)) * draw[:, 2])
    # A window wider than the photograph is clipped to it.
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    centre_x, centre_y = (draw[:, 3] * 2 - 1) * (1 - width), (draw[:, 4] * 2 - 1) * (1 - height)
    flip_x, flip_y = (torch.where(draw[:, axis] < 0.5, -1.0, 1.0) for axis in (5, 6))
    # Output point -> rotate -> scale into the window -> its centre -> flip (affine_grid: output to input).
    cos, sin = angle.cos(), angle.sin()
    theta = torch.stack(
        [
            torch.stack([flip_x * width * cos, -flip_x * width * sin, flip_x * centre_x], dim=1),
            torch.stack([flip_y * height * sin, flip_y * height * cos, flip_y * centre_y], dim=1),
        ],
        dim=1,
    ).to(images.device)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False).clamp_(0, 1)
