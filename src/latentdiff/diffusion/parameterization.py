"""What the network predicts: a linear mix a·x0 + b·eps. One table and one 2x2 solve serve training and sampling."""

import torch
from torch import Tensor

from latentdiff.config import UserError
from latentdiff.diffusion.schedule import Schedule, column

TARGET_COEFFS = {
    "eps": lambda alpha, sigma: (0 * alpha, 1 + 0 * sigma),  # Ho et al. 2020
    "x0": lambda alpha, sigma: (1 + 0 * alpha, 0 * sigma),
    "v": lambda alpha, sigma: (-sigma, alpha),  # Salimans & Ho 2022
    "flow": lambda alpha, sigma: (-1 + 0 * alpha, 1 + 0 * sigma),  # the straight path's velocity, Lipman et al. 2023
}


def target(kind: str, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """What the network should output: x0, eps [B, ...], alpha, sigma [B] -> [B, ...]."""
    a, b = TARGET_COEFFS[kind](column(alpha, x0), column(sigma, x0))
    return a * x0 + b * eps


def solve(kind: str, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The (x0, eps) that satisfy x_t = alpha·x0 + sigma·eps and output = a·x0 + b·eps, by Cramer's rule."""
    output = output.to(x_t.dtype)  # a network under autocast answers in half precision
    alpha, sigma = column(alpha, x_t), column(sigma, x_t)
    a, b = TARGET_COEFFS[kind](alpha, sigma)
    determinant = alpha * b - sigma * a
    return (b * x_t - sigma * output) / determinant, (alpha * output - a * x_t) / determinant


def check(kind: str, schedule: Schedule) -> None:
    """Refuse a prediction from which x0 and eps cannot be had at every timestep of the schedule."""
    if kind not in TARGET_COEFFS:
        raise UserError(f"prediction is {kind!r}; it can be {', '.join(TARGET_COEFFS)}")
    t = torch.arange(schedule.T, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    a, b = TARGET_COEFFS[kind](alpha, sigma)
    determinant = (alpha * b - sigma * a).abs().min()
    if not determinant.is_meta and determinant < 1e-6:
        raise UserError(
            f"prediction={kind} says nothing about x0 where there is no signal, and the last timestep of "
            f"schedule.kind={schedule.config.kind} has none; use prediction=v or x0 (for flow: flow)"
        )
