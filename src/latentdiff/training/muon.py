"""Muon: AdamW whose steps of hidden matrices are orthogonal (Jordan et al. 2024; scaled as in Liu et al. 2025)."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
POLYNOMIAL = (3.4445, -4.7750, 2.0315)  # Jordan's: x -> ax + bx^3 + cx^5, five times, takes 0.01..1 to 0.7..1.2
NARROWEST = 16  # columns or rows; where there are fewer, as in the first and last layer, AdamW does as well


def hidden(module: nn.Module) -> Iterator[nn.Parameter]:
    """The matrices and kernels between a network's first and last layer; no tables, norms or biases."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and min(layer.weight.shape[:2]) >= NARROWEST:
            yield layer.weight


class Muon(torch.optim.AdamW):
    """AdamW, but what is in groups with `orthogonal` moves by the momentum's nearest orthogonal matrix.

    That moves a matrix as far in its weak directions as in its strong ones. A kernel is a matrix [out, in·h·w]. The
    length of the step is that of an AdamW step (0.2 for each number), so one rate serves both. `found_inf` as in the
    fused AdamW: where it is 1, nothing changes. dtype: what the products are computed in, bfloat16 or float32.
    """

    def __init__(self, groups: list[dict], lr: float, betas: tuple[float, ...], dtype: torch.dtype, **options) -> None:
        super().__init__([{"orthogonal": False} | group for group in groups], lr, betas, **options)
        self.dtype = dtype

    @torch.no_grad()
    def step(self) -> None:
        everything = self.param_groups
        for group in everything:
            if group["orthogonal"]:
                self.turn(group)
        self.param_groups = [group for group in everything if not group["orthogonal"]]
        super().step()
        self.param_groups = everything

    def turn(self, group: dict) -> None:
        """The step of one group, all matrices of one shape at a time."""
        alike: dict[torch.Size, list[nn.Parameter]] = {}
        for weight in group["params"]:
            if weight.grad is not None:
                alike.setdefault(weight.shape, []).append(weight)
        good = 1 - self.found_inf
        for shape, weights in alike.items():
            moments = [self.moment(weight) for weight in weights]
            ways = [torch.where(good > 0, weight.grad, m) for weight, m in zip(weights, moments)]
            torch._foreach_lerp_(moments, ways, 1 - MOMENTUM)
            torch._foreach_lerp_(ways, moments, MOMENTUM)  # Nesterov's: a look ahead
            way = orthogonal(torch.stack(ways).flatten(2).to(self.dtype))
            way *= -group["lr"] * 0.2 * max(way.shape[1:]) ** 0.5 * good
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"] * good)
            torch._foreach_add_(weights, list(way.view(-1, *shape)))

    def moment(self, weight: nn.Parameter) -> Tensor:
        """Its momentum, by the name of Adam's, which one checkpoint holds."""
        if not self.state[weight]:
            self.state[weight] |= {"step": torch.zeros(()), "exp_avg": torch.zeros_like(weight)}
        return self.state[weight]["exp_avg"]


def orthogonal(matrices: Tensor) -> Tensor:
    """[N, m, n] -> the same with singular values near 1, by Newton and Schulz's iteration."""
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = POLYNOMIAL
    for _ in range(5):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x if wide else x.mT
