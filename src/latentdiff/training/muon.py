"""Muon: AdamW with orthogonalized updates of hidden matrices (Jordan et al. 2024; scaled as in Liu et al. 2025)."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
POLYNOMIAL = (3.4445, -4.7750, 2.0315)  # x -> ax + bx^3 + cx^5, five times, maps 0.01..1 to 0.7..1.2 (Jordan et al.)
MIN_WIDTH = 16  # rows and columns; smaller matrices, as in the first and last layer, are updated by AdamW


def hidden_matrices(module: nn.Module) -> Iterator[nn.Parameter]:
    """Matrices and convolution kernels between the first and last layer of a network; no embeddings, norms, biases."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and min(layer.weight.shape[:2]) >= MIN_WIDTH:
            yield layer.weight


class Muon(torch.optim.AdamW):
    """AdamW, but groups with `orthogonal` are updated by the orthogonal matrix nearest to their momentum.

    The update is then equally large in all directions. A kernel is a matrix [out, in·h·w]. The size of the update is
    that of AdamW (RMS 0.2), so both use the same learning rate. As in the fused AdamW, nothing changes if `found_inf`
    is 1. dtype: of the matrix products, bfloat16 or float32.
    """

    def __init__(self, groups: list[dict], lr: float, betas: tuple[float, ...], dtype: torch.dtype, **options) -> None:
        super().__init__([{"orthogonal": False} | group for group in groups], lr, betas, **options)
        self.dtype = dtype

    @torch.no_grad()
    def step(self) -> None:
        groups = self.param_groups
        for group in groups:
            if group["orthogonal"]:
                self.muon_step(group)
        self.param_groups = [group for group in groups if not group["orthogonal"]]
        super().step()
        self.param_groups = groups

    def muon_step(self, group: dict) -> None:
        """The update of one group, all matrices of the same shape together."""
        by_shape: dict[torch.Size, list[nn.Parameter]] = {}
        for weight in group["params"]:
            if weight.grad is not None:
                by_shape.setdefault(weight.shape, []).append(weight)
        finite = 1 - self.found_inf
        for shape, weights in by_shape.items():
            moments = [self.moment(weight) for weight in weights]
            updates = [torch.where(finite > 0, weight.grad, m) for weight, m in zip(weights, moments)]
            torch._foreach_lerp_(moments, updates, 1 - MOMENTUM)
            torch._foreach_lerp_(updates, moments, MOMENTUM)  # Nesterov momentum
            update = orthogonalize(torch.stack(updates).flatten(2).to(self.dtype))  # [N, out, in·h·w]
            update *= -group["lr"] * 0.2 * max(update.shape[1:]) ** 0.5 * finite
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"] * finite)
            torch._foreach_add_(weights, list(update.view(-1, *shape)))

    def moment(self, weight: nn.Parameter) -> Tensor:
        """The momentum of a weight, under the name that AdamW uses, so that checkpoints have one format."""
        if not self.state[weight]:
            self.state[weight] |= {"step": torch.zeros(()), "exp_avg": torch.zeros_like(weight)}
        return self.state[weight]["exp_avg"]


def orthogonalize(matrices: Tensor) -> Tensor:
    """[N, m, n] -> the same singular vectors with singular values near 1, by Newton-Schulz iteration."""
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = POLYNOMIAL
    for _ in range(5):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x if wide else x.mT
