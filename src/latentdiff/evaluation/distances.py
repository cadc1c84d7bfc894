"""How far one set of pictures is from another, in the space of some features [N, D]; computed in float64."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

ROWS = 1000  # of a matrix of distances that are held at once


def fid(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of the Gaussians that fit two sets (Heusel et al. 2017, eq. 6): [N, D], [M, D]."""
    a, b = a.double(), b.double()
    return frechet(a.mean(0), torch.cov(a.T), b.mean(0), torch.cov(b.T))


def frechet(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """|m - m'|² + tr(C + C' - 2 (C C')^½): means [D], covariances [D, D], float64.

    The trace of the root is taken of C^½ C' C^½, which is symmetric and has the same eigenvalues.
    """
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    shared = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return ((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * shared).item()


def kernel(a: Tensor, b: Tensor) -> Tensor:
    """The cubic kernel of KID: [N, D], [M, D] -> [N, M]."""
    return (a @ b.T / a.shape[1] + 1) ** 3


def kid(a: Tensor, b: Tensor) -> float:
    """Kernel distance (Bińkowski et al. 2018, eq. 4), unbiased, over all pairs: [N, D], [M, D]; 0 for one source."""
    a, b = a.double(), b.double()

    def within(x: Tensor) -> Tensor:
        whole = sum(kernel(rows, x).sum() for rows in x.split(ROWS))
        own = ((x.square().sum(1) / x.shape[1] + 1) ** 3).sum()
        return (whole - own) / (len(x) * (len(x) - 1))

    across = sum(kernel(rows, b).mean(1).sum() for rows in a.split(ROWS)) / len(a)
    return (within(a) + within(b) - 2 * across).item()


def kid_error(a: Tensor, b: Tensor, parts: int = 10) -> float:
    """The standard error of `kid`, from the scatter of that many parts of both sets."""
    found = torch.tensor([kid(x, y) for x, y in zip(a.chunk(parts), b.chunk(parts)) if min(len(x), len(y)) > 1])
    return (found.std() / len(found) ** 0.5).item() if len(found) > 1 else float("nan")


def inception_score(logits: Tensor, splits: int = 10) -> tuple[float, float]:
    """exp E KL(p(y|x) || p(y)) (Salimans et al. 2016, sec. 4): mean and deviation over parts of logits [N, K]."""
    scores = []
    for part in logits.double().chunk(min(splits, len(logits))):
        log_p = part.log_softmax(1)
        marginal = log_p.exp().mean(0, keepdim=True)
        scores.append((log_p.exp() * (log_p - marginal.log())).sum(1).mean().exp())
    found = torch.stack(scores)
    return found.mean().item(), found.std(correction=0).item()


def precision_recall(drawn: Tensor, real: Tensor, k: int = 3) -> tuple[float, float]:
    """Kynkäänniemi et al. 2019, eq. 1 and 2: the share of each set within the other's balls to the k-th neighbour."""
    drawn, real = drawn.double(), real.double()
    return _covered(drawn, real, k), _covered(real, drawn, k)


def _covered(points: Tensor, centres: Tensor, k: int) -> float:
    """The share of points that lie in a ball around a centre which reaches to the centre's k-th neighbour."""
    k = min(k, len(centres) - 1)
    radius = torch.cat([d.kthvalue(k + 1, dim=1).values for d in _distances(centres, centres)])  # itself is the first
    return torch.cat([(d <= radius).any(1) for d in _distances(points, centres)]).double().mean().item()


class Nearest(NamedTuple):
    distance: Tensor  # [N, k], nearest first
    index: Tensor  # [N, k], of the rows of `among`


def nearest(points: Tensor, among: Tensor, k: int = 2) -> Nearest:
    """The k nearest rows of `among` [M, D] to each of points [N, D]."""
    found = [d.topk(min(k, len(among)), dim=1, largest=False) for d in _distances(points.double(), among.double())]
    return Nearest(torch.cat([f.values for f in found]), torch.cat([f.indices for f in found]))


def memorisation(drawn: Tensor, train: Tensor, held_out: Tensor) -> dict[str, float]:
    """How near samples are to the training pictures, against held-out pictures, which cannot have been learned.

    nearest_ratio: median distance to the nearest training picture, of samples over that of held-out ones; about 1
    where nothing is learned by heart, towards 0 where all is.
    copies: the share of samples whose nearest training picture is three times nearer than the second nearest (Yoon et
    al. 2023); copies_held_out: the same of held-out pictures.
    """
    ours, theirs = nearest(drawn, train).distance, nearest(held_out, train).distance
    ratio = ours[:, 0].median() / theirs[:, 0].median().clamp(min=1e-12)
    copied = [(3 * d[:, 0] < d[:, 1]).double().mean().item() for d in (ours, theirs)] if len(train) > 1 else [0.0] * 2
    return {"nearest_ratio": ratio.item(), "copies": copied[0], "copies_held_out": copied[1]}


def _distances(points: Tensor, centres: Tensor) -> Iterator[Tensor]:
    for rows in points.split(ROWS):  # the direct form: near points keep their digits
        yield torch.cdist(rows, centres, compute_mode="donot_use_mm_for_euclid_dist")
