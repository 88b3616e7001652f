"""Realism and diversity of images of one grade against photographs of it, in the feature space of your choice.

Set against score and downstream gain, since realism is not usefulness (paper 9). All of it is relative to the features:
those of graders see lesions and little else; InceptionV3's, which the literature reports, see texture.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raydr.identity import rng_of

# Neighbours whose distance is the radius of a ball: Kynkäänniemi et al. 2019, and Naeem et al. 2020.
PRECISION_K, COVERAGE_K = 3, 5
# Halves that the error of KID is estimated from: it is then known to 7 %.
NUM_HALVES = 100
# Fewest images of a set that are compared: balls need COVERAGE_K neighbours, halves two images.
FEWEST = COVERAGE_K + 1


@dataclass(frozen=True)
class Quality:
    """One set of images against one of photographs; shares are 0-1."""

    num_images: int
    num_photographs: int
    # Squared MMD, unbiased, so it may be below 0; and its standard error.
    kid: float
    kid_error: float
    # Share of images that lie within the photographs' manifold, and of photographs within the images'.
    precision: float
    recall: float
    # Share of photographs that have an image in their neighbourhood.
    coverage: float
    # Mean distance between two images over that between two photographs: below 1 = more alike than eyes are.
    diversity: float


def quality(images: np.ndarray, photographs: np.ndarray) -> Quality | None:
    """Compare features (n, D) of images with those (m, D) of photographs; None with fewer than FEWEST of either."""
    if min(len(images), len(photographs)) < FEWEST:
        return None
    x, y = (torch.from_numpy(np.ascontiguousarray(each)).to(torch.float64) for each in (images, photographs))
    value, error = kid(x, y)
    precision, recall = precision_recall(x, y)
    return Quality(
        num_images=len(x),
        num_photographs=len(y),
        kid=value,
        kid_error=error,
        precision=precision,
        recall=recall,
        coverage=coverage(x, y),
        diversity=float(torch.pdist(x).mean() / torch.pdist(y).mean()),
    )


def kid(x: Tensor, y: Tensor, num_halves: int = NUM_HALVES) -> tuple[float, float]:
    """Kernel inception distance of features (n, D) and (m, D), and its standard error.

    Unbiased squared MMD with the kernel (x.y / D + 1)^3 (Bińkowski et al. 2018, eq. 3 and section 4). They report the
    mean over subsets of 1,000 and the spread between these; rare grades have a dozen photographs. So the value is that
    of all rows, and the error the spread between random halves: the delete-half jackknife (Shao and Wu 1989), which is
    up to 1.7 times too wide where both sets come from one distribution. Memory: (n + m)^2 x 8 bytes.
    """
    kernels = kernel(x, x), kernel(y, y), kernel(x, y)
    rng = rng_of("kid-halves")
    values = []
    for _ in range(num_halves):
        i, j = (torch.from_numpy(rng.permutation(len(rows))[: len(rows) // 2]) for rows in (x, y))
        values.append(_mmd(kernels[0][i][:, i], kernels[1][j][:, j], kernels[2][i][:, j]))
    return _mmd(*kernels), float(np.std(values))


def kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _mmd(xx: Tensor, yy: Tensor, xy: Tensor) -> float:
    n, m = xy.shape
    same = (xx.sum() - xx.trace()) / (n * (n - 1)) + (yy.sum() - yy.trace()) / (m * (m - 1))
    return float(same - 2 * xy.mean())


def precision_recall(x: Tensor, y: Tensor, k: int = PRECISION_K) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019, eq. 1): the share of images (n, D) within the distance
    of some photograph (m, D) to its k-th neighbour, and the other way round."""
    distance = torch.cdist(x, y)
    precision = (distance <= radii(y, k)[None]).any(dim=1)
    recall = (distance <= radii(x, k)[:, None]).any(dim=0)
    return float(precision.double().mean()), float(recall.double().mean())


def coverage(x: Tensor, y: Tensor, k: int = COVERAGE_K) -> float:
    """Share of photographs (m, D) with an image (n, D) nearer than their k-th neighbour (Naeem et al. 2020, eq. 6)."""
    return float((torch.cdist(x, y).amin(dim=0) <= radii(y, k)).double().mean())


def radii(x: Tensor, k: int) -> Tensor:
    """Distance of each row (n, D) to its k-th nearest other row, (n,)."""
    distance = torch.cdist(x, x).fill_diagonal_(torch.inf)
    return distance.kthvalue(k, dim=1).values
