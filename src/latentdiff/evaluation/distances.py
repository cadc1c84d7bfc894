"""Distances between two sets of images, from their features [N, D]; computed in float64."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

CHUNK_SIZE = 1000  # points whose distances to all others are in memory at once


def fid(a: Tensor, b: Tensor) -> float:
    """Fréchet inception distance (Heusel et al. 2017, eq. 6) of features [N, D] and [M, D]."""
    a, b = a.double(), b.double()
    return frechet_distance(a.mean(0), torch.cov(a.T), b.mean(0), torch.cov(b.T))


def frechet_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """Fréchet distance of two Gaussians, |m - m'|² + tr(C + C' - 2 (C C')^½): means [D], covariances [D, D], float64.

    The square root is taken of C^½ C' C^½ instead, which is symmetric and has the same eigenvalues.
    """
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return ((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross).item()


def kernel(a: Tensor, b: Tensor) -> Tensor:
    """The cubic polynomial kernel of KID: [N, D], [M, D] -> [N, M]."""
    return (a @ b.T / a.shape[1] + 1) ** 3


def kid(a: Tensor, b: Tensor) -> float:
    """Kernel inception distance (Bińkowski et al. 2018, eq. 4) of features [N, D] and [M, D].

    The unbiased estimate over all pairs: its expectation is 0 for two sets from the same distribution.
    """
    a, b = a.double(), b.double()

    def within(x: Tensor) -> Tensor:
        """Mean kernel of all pairs of different points."""
        total = sum(kernel(chunk, x).sum() for chunk in x.split(CHUNK_SIZE))
        diagonal = ((x.square().sum(1) / x.shape[1] + 1) ** 3).sum()
        return (total - diagonal) / (len(x) * (len(x) - 1))

    across = sum(kernel(chunk, b).mean(1).sum() for chunk in a.split(CHUNK_SIZE)) / len(a)
    return (within(a) + within(b) - 2 * across).item()


def kid_error(a: Tensor, b: Tensor, subsets: int = 10) -> float:
    """Standard error of `kid`, estimated from its variation over disjoint subsets of both sets."""
    values = torch.tensor([kid(x, y) for x, y in zip(a.chunk(subsets), b.chunk(subsets)) if min(len(x), len(y)) > 1])
    return (values.std() / len(values) ** 0.5).item() if len(values) > 1 else float("nan")


def inception_score(logits: Tensor, splits: int = 10) -> tuple[float, float]:
    """exp E KL(p(y|x) || p(y)) (Salimans et al. 2016, sec. 4) of logits [N, K]: mean and deviation over splits."""
    scores = []
    for split in logits.double().chunk(min(splits, len(logits))):
        log_p = split.log_softmax(1)
        marginal = log_p.exp().mean(0, keepdim=True)
        scores.append((log_p.exp() * (log_p - marginal.log())).sum(1).mean().exp())
    scores = torch.stack(scores)
    return scores.mean().item(), scores.std(correction=0).item()


def precision_recall(samples: Tensor, real: Tensor, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019, eq. 1 and 2) of features [N, D] and [M, D]."""
    samples, real = samples.double(), real.double()
    return _coverage(samples, real, k), _coverage(real, samples, k)


def _coverage(points: Tensor, centers: Tensor, k: int) -> float:
    """Fraction of points that lie within the distance from some center to its k-th nearest other center."""
    k = min(k, len(centers) - 1)
    radius = torch.cat([d.kthvalue(k + 1, dim=1).values for d in _distances(centers, centers)])  # itself is the first
    return torch.cat([(d <= radius).any(1) for d in _distances(points, centers)]).double().mean().item()


class Neighbors(NamedTuple):
    distance: Tensor  # [N, k], nearest first
    index: Tensor  # [N, k], of the candidates


def nearest_neighbors(points: Tensor, candidates: Tensor, k: int = 2) -> Neighbors:
    """The k candidates [M, D] that are nearest to each of the points [N, D]."""
    k, chunks = min(k, len(candidates)), _distances(points.double(), candidates.double())
    nearest = [d.topk(k, dim=1, largest=False) for d in chunks]
    return Neighbors(torch.cat([x.values for x in nearest]), torch.cat([x.indices for x in nearest]))


def memorization(samples: Tensor, train: Tensor, held_out: Tensor) -> dict[str, float]:
    """How near samples are to training images, compared with held-out images, which cannot be memorized.

    nearest_neighbor_ratio: median distance to the nearest training image, of samples over that of held-out images;
        about 1 without memorization, near 0 for copies.
    copied_fraction: fraction of samples whose nearest training image is three times nearer than the second nearest
        (Yoon et al. 2023); copied_fraction_held_out: the same for held-out images.
    """
    to_train = [nearest_neighbors(x, train).distance for x in (samples, held_out)]
    median, held_out_median = (d[:, 0].median() for d in to_train)
    copied = [(3 * d[:, 0] < d[:, 1]).double().mean().item() if len(train) > 1 else 0.0 for d in to_train]
    return {
        "nearest_neighbor_ratio": (median / held_out_median.clamp(min=1e-12)).item(),
        "copied_fraction": copied[0],
        "copied_fraction_held_out": copied[1],
    }


def _distances(points: Tensor, centers: Tensor) -> Iterator[Tensor]:
    """Distances [chunk, M] of consecutive chunks of points [N, D] to centers [M, D]."""
    for chunk in points.split(CHUNK_SIZE):
        yield torch.cdist(chunk, centers, compute_mode="donot_use_mm_for_euclid_dist")  # exact for near points
