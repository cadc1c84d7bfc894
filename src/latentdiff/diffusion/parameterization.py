"""What the network predicts: a·x0 + b·eps. The same coefficients serve the training target and the samplers."""

import torch
from torch import Tensor

from latentdiff.config import UserError
from latentdiff.diffusion.schedule import Schedule, append_dims

TARGET_COEFFS = {  # alpha, sigma -> (a, b)
    "eps": lambda alpha, sigma: (0 * alpha, 1 + 0 * sigma),  # Ho et al. 2020
    "x0": lambda alpha, sigma: (1 + 0 * alpha, 0 * sigma),
    "v": lambda alpha, sigma: (-sigma, alpha),  # Salimans & Ho 2022
    "flow": lambda alpha, sigma: (-1 + 0 * alpha, 1 + 0 * sigma),  # the straight path's velocity, Lipman et al. 2023
}


def training_target(kind: str, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The output that the network is trained to predict: x0, eps [B, ...], alpha, sigma [B] -> [B, ...]."""
    a, b = TARGET_COEFFS[kind](append_dims(alpha, x0), append_dims(sigma, x0))
    return a * x0 + b * eps


def to_x0_eps(kind: str, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Solve x_t = alpha·x0 + sigma·eps and output = a·x0 + b·eps for (x0, eps), all [B, ...], by Cramer's rule."""
    output = output.to(x_t.dtype)  # half precision under autocast
    alpha, sigma = append_dims(alpha, x_t), append_dims(sigma, x_t)  # [B, 1, ...]
    a, b = TARGET_COEFFS[kind](alpha, sigma)
    determinant = alpha * b - sigma * a
    return (b * x_t - sigma * output) / determinant, (alpha * output - a * x_t) / determinant


def check_parameterization(kind: str, schedule: Schedule) -> None:
    """Refuse a prediction that does not determine x0 and eps at every timestep of the schedule."""
    if kind not in TARGET_COEFFS:
        raise UserError(f"prediction is {kind!r}; it must be one of {', '.join(TARGET_COEFFS)}")
    t = torch.arange(schedule.T, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    a, b = TARGET_COEFFS[kind](alpha, sigma)
    determinant = (alpha * b - sigma * a).abs().min()
    if not determinant.is_meta and determinant < 1e-6:
        raise UserError(
            f"prediction={kind} does not determine x0 where there is no signal, as at the last timestep of "
            f"schedule.kind={schedule.config.kind}; use prediction=v or x0 (or flow with schedule.kind=flow)"
        )
