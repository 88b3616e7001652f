"""Memorisation gate: is a sample a photograph that the generator saw: as it is, mirrored, or cropped?

Two decisions make planted copies show (measured on 1,719 phantoms of 64 px, 300 planted copies of each
kind): a plain pixel distance flagged none that had lost 5 % of its frame, since zooming moves every vessel
while strangers of the same tint are near anyway.

- `structure` keeps vessels and the disc, drops tint, brightness and the frame's outline. Any other
  embedding in which a copy stays close can take its place (means of VAE latents of 128 px); a grader's features
  cannot, for they call two healthy eyes the same.
- A sample is looked at in twelve `views`: shrunk back as if each corner, or the rim, had been cut away,
  each also mirrored. The nearest over all views counts.

The threshold is the first percentile, over photographs, of the distance to the nearest one of *another*
patient under the same search, so about 1 % of honest samples from an equally dense set are flagged. (The
first percentile over all pairs would flag nearly all: the nearest of 1,719 strangers is closer than a
hundredth of them.)

What it does not see: the same eye with many other lesions. A healthy phantom eye redrawn with mild lesions
is flagged always, with moderate ones in 78 % of cases, with severe ones, which at 64 px cover its vessels, in 5 %.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from raydr.errors import UserError
from raydr.grading.training import Images
from raydr.identity import rng_of

Embed = Callable[[np.ndarray], np.ndarray]  # uint8 (B, H, W, 3) -> float32 (B, D)

SIDE = 64  # px at which structure is looked at, whatever the photograph's
# px to which larger photographs and samples are shrunk first: twice SIDE loses nothing that SIDE would have left.
# Twelve views of 512 px took 48 ms of CPU an image, on the thread that feeds a GPU 7 images a second; now 4.
MOST = 2 * SIDE
BACKGROUND_SIGMA, DETAIL_SIGMA = 4.0, 1.5  # px: what is subtracted, and how far a vessel may have moved
RADIUS = 0.85  # of the half side; beyond lies the rim, which all fundus photographs share
LIT = 0.04  # grey level, 0-1, above which a pixel belongs to the field of view
CROP = 0.05  # share of the side that a cropped copy has lost
QUANTILE = 0.01
# Photographs that the threshold is measured on: the percentile of 1,000 has a standard error of .3 points.
NUM_STRANGERS = 1000
BATCH = 256


@torch.inference_mode()
def structure(pixels: np.ndarray) -> np.ndarray:
    """Vessel structure of uint8 images (B, H, W, 3): float32 (B, 1024), mean 0, RMS 1 (0 for flat ones).

    Local contrast of the grey image, compressed by tanh so that a bright disc weighs no more than a
    vessel, slightly blurred. The squared RMS distance of two images is 2 - 2 x their correlation.
    """
    images = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).to(torch.float32).div_(255)
    if images.shape[-2:] != (SIDE, SIDE):
        images = F.interpolate(images, size=(SIDE, SIDE), mode="bilinear", antialias=True)
    grey = images.mean(dim=1, keepdim=True)
    lit = (grey > LIT).to(torch.float32)
    background = _blur(grey * lit, BACKGROUND_SIGMA) / (_blur(lit, BACKGROUND_SIGMA) + 1e-3)
    line = (torch.arange(SIDE) - (SIDE - 1) / 2) / (SIDE / 2)
    inside = (line[:, None] ** 2 + line[None] ** 2 < RADIUS**2).to(torch.float32)
    detail = _blur(grey - background, DETAIL_SIGMA) * inside
    detail = torch.tanh(detail / (detail.flatten(1).std(dim=1)[:, None, None, None] + 1e-6))
    features = F.avg_pool2d(detail, 2).flatten(1)
    features = features - features.mean(dim=1, keepdim=True)
    return (features / features.square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-6)).numpy()


@cache
def _gaussian(sigma: float) -> Tensor:
    """(SIDE, SIDE) matrix that blurs along one axis, mirrored at the ends: as a product it takes a tenth
    of the time of a convolution over one channel."""
    line = torch.arange(SIDE)
    reach = round(3 * sigma)
    matrix = torch.zeros(SIDE, SIDE)
    for offset in range(-reach, reach + 1):
        source = line + offset
        source = torch.where(source < 0, -source, source)
        source = torch.where(source >= SIDE, 2 * (SIDE - 1) - source, source)
        matrix[line, source] += float(np.exp(-0.5 * (offset / sigma) ** 2))
    return matrix / matrix.sum(dim=1, keepdim=True)


def _blur(images: Tensor, sigma: float) -> Tensor:
    kernel = _gaussian(sigma)
    return kernel @ images @ kernel.T


@torch.inference_mode()
def shrunk(pixels: np.ndarray) -> np.ndarray:
    """uint8 images (B, H, W, 3) at MOST px; smaller ones as they are."""
    if pixels.shape[1] <= MOST:
        return pixels
    # uint8 and channels last as they lie: what torch's resizing is written for on CPUs.
    images = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)
    images = F.interpolate(images, size=(MOST, MOST), mode="bilinear", antialias=True)
    return np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())


@torch.inference_mode()
def views(pixels: np.ndarray) -> list[np.ndarray]:
    """Twelve versions of uint8 images (B, H, W, 3), at MOST px where they are larger: as they are, reduced by 5 % into
    the centre and each corner of a black frame, and all six mirrored left to right."""
    pixels = shrunk(pixels)
    side = pixels.shape[1]
    inner = side - max(1, round(CROP * side))
    images = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).to(torch.float32)
    small = F.interpolate(images, size=(inner, inner), mode="bilinear", antialias=True)
    small = small.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    lost = side - inner
    versions = [pixels]
    for top, left in ((lost // 2, lost // 2), (0, 0), (0, lost), (lost, 0), (lost, lost)):
        framed = torch.zeros(len(pixels), side, side, 3, dtype=torch.uint8)
        framed[:, top : top + inner, left : left + inner] = small
        versions.append(framed.numpy())
    return versions + [np.ascontiguousarray(version[:, :, ::-1]) for version in versions]


@dataclass(frozen=True)
class Gate:
    """The photographs that a sample must not repeat, and how close is too close. Pickles with its embedding."""

    features: np.ndarray  # float32 (N, D) of photographs that base, prior or generator saw
    image_ids: tuple[str, ...]
    threshold: float  # RMS distance; samples nearer than this are flagged
    embed: Embed = structure

    def check(self, pixels: np.ndarray, device: str | torch.device = "cpu") -> tuple[list[str], np.ndarray, np.ndarray]:
        """The nearest photograph of each uint8 sample (B, H, W, 3).

        Returns:
            its image id (B,), the RMS distance float32 (B,), and whether the sample is flagged, bool (B,).
        """
        distance, position = search(pixels, self.features, self.embed, device)
        return [self.image_ids[row] for row in position], distance, distance < self.threshold


def fit(
    images: Images,
    rows: np.ndarray,
    image_ids: Sequence[str],
    patient_ids: Sequence[str | None],
    embed: Embed = structure,
    device: str | torch.device = "cpu",
) -> Gate:
    """The gate of the photographs `images[rows]` (N,).

    `patient_ids` keeps two photographs of one patient from setting the threshold (None: a patient of its
    own). Up to 1,000 photographs, chosen by a fixed seed, set it. Raises UserError with fewer than two
    patients. Memory: N x D x 4 bytes, 4 kB a photograph with `structure`, and 256 images at a time.
    """
    rows = np.asarray(rows, dtype=np.int64)
    unit_of: dict[object, int] = {}
    patients = np.array(
        [
            unit_of.setdefault(name if name is not None else ("row", row), len(unit_of))
            for row, name in enumerate(patient_ids)
        ]
    )
    if len(unit_of) < 2:
        raise UserError("the memorisation gate needs photographs of at least two patients to set its threshold")
    features = np.concatenate(
        [embed(shrunk(images[rows[start : start + BATCH]])) for start in range(0, len(rows), BATCH)]
    )
    chosen = np.sort(rng_of("memorisation-gate").permutation(len(rows))[:NUM_STRANGERS])
    distances = [
        search(images[rows[part]], features, embed, device, patients[part], patients)[0]
        for part in np.array_split(chosen, -(-len(chosen) // BATCH))
    ]
    return Gate(features, tuple(image_ids), float(np.quantile(np.concatenate(distances), QUANTILE)), embed)


@torch.inference_mode()
def search(
    pixels: np.ndarray,
    features: np.ndarray,
    embed: Embed,
    device: str | torch.device = "cpu",
    own: np.ndarray | None = None,
    patients: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """RMS distance float32 (B,) and position int64 (B,) of the nearest row of `features` (N, D) over all views.

    With `own` (B,) and `patients` (N,), rows of the sample's own patient are passed over.
    """
    reference = torch.from_numpy(features).to(device)
    norms = reference.square().sum(dim=1)
    looks = [torch.from_numpy(embed(view)).to(device) for view in views(pixels)]
    nearest = torch.full((len(pixels), len(features)), torch.inf, device=device)
    for x in looks:
        # |x - y|^2 = |x|^2 + |y|^2 - 2 xy: one matrix product instead of B x N x D differences.
        squared = torch.addmm(norms[None], x, reference.T, alpha=-2) + x.square().sum(dim=1, keepdim=True)
        nearest = torch.minimum(nearest, squared)
    if own is not None and patients is not None:
        same = torch.from_numpy(own)[:, None] == torch.from_numpy(patients)[None]
        nearest.masked_fill_(same.to(device), torch.inf)
    position = nearest.argmin(dim=1)
    # Exact for the winner: near a copy the formula above has lost its digits.
    exact = torch.stack([(x - reference[position]).square().mean(dim=1) for x in looks]).amin(dim=0).sqrt()
    return exact.cpu().numpy(), position.cpu().numpy()
