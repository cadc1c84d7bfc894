"""Exponential moving average (EMA) of the weights: what is validated, sampled and saved as the result."""

import copy

import torch
from torch import Tensor, nn


class EMA:
    """`model` is a copy of the trained model whose weights follow: ema <- ema + (1 - d) (weight - ema).

    d = min(decay, (1 + n) / (10 + n)) at the n-th update (original release, ema.py), so that early samples are not the
    initial weights. Buffers are copied. d depends on the step alone, so only the weights are saved.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.source, self.decay = model, decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    def lerp_weight(self, step: int) -> float:
        """1 - d after the step numbered `step`, counted from 0."""
        return 1 - min(self.decay, (2 + step) / (11 + step))

    def update(self, step: int, grad_norm: Tensor) -> None:
        """Update after the step numbered `step`; unchanged if grad_norm is not finite, since the step was skipped."""
        weight = self.lerp_weight(step)
        self.lerp(torch.full((), weight, device=grad_norm.device) if grad_norm.is_cuda else weight, grad_norm)

    @torch.no_grad()
    def lerp(self, weight: float | Tensor, grad_norm: Tensor) -> None:
        weight = weight * torch.isfinite(grad_norm)
        ema_params, params = list(self.model.parameters()), list(self.source.parameters())
        if weight.is_cuda:  # torch._foreach_lerp_ with a weight on the device launches one kernel per parameter
            differences = torch._foreach_sub(params, ema_params)
            torch._foreach_mul_(differences, weight)
            torch._foreach_add_(ema_params, differences)
        else:
            torch._foreach_lerp_(ema_params, params, [weight] * len(ema_params))
        for ema_buffer, buffer in zip(self.model.buffers(), self.source.buffers()):
            ema_buffer.copy_(buffer)
