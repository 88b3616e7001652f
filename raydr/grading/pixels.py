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


def pass_size(px: int) -> int:
    """Images of `px` in one pass of a grader that is not trained: VGG16 takes 128 MiB for each of 512 px in fp32."""
    return max(16, min(256, 256 * 64**2 // px**2))


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
    row, column = (index.clamp_(0, px - 1) * torch.tensor([[px], [1]], device=device)).to(torch.int32).unbind(dim=1)
    # A quarter turn reads columns where rows were. One flat index moves whole pixels in one pass: a sixth
    # of the time of indexing image, row and column apart and turning afterwards.
    first, second = torch.where(flip[:, 2:], column, row), torch.where(flip[:, 2:], row, column)
    first = first + px * px * torch.arange(batch, dtype=torch.int32, device=device)[:, None]
    source = (first[:, :, None] + second[:, None, :]).flatten()
    pixels = images.permute(0, 2, 3, 1).reshape(-1, 3).index_select(0, source).view(batch, px * px, 3)

    contrast = 1 + CONTRAST * jitter[:, :1]
    gain = contrast * (1 + COLOUR * jitter[:, 2:])
    mean = pixels.mean(dim=1)
    offset = mean * (1 + BRIGHTNESS * jitter[:, 1:2]) - gain * mean
    return affine(pixels.view(batch, px, px, 3).permute(0, 3, 1, 2), gain, offset).clamp_(0, 1)


def affine(images: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
    """gain * images + offset per channel: images (B, 3, H, W), gain and offset (3,) or (B, 3).

    Both are tiled along a row of stored pixels, which makes channels-last rows one long vector: a fifth
    of the time of broadcasting over a last axis of three.
    """
    batch, channels, height, width = images.shape
    rows = images.permute(0, 2, 3, 1).reshape(batch, height, width * channels)
    gain, offset = (values.reshape(-1, channels).repeat(1, width)[:, None] for values in (gain, offset))
    return torch.addcmul(offset, rows, gain).view(batch, height, width, channels).permute(0, 3, 1, 2)


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
