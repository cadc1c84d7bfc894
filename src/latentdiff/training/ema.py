"""The exponential moving average of a model's weights: what is sampled, and what is shipped."""

import copy

import torch
from torch import Tensor, nn


class EMA:
    """A second model whose weights trail behind: shadow <- shadow + (1 - d) (weight - shadow).

    d = min(decay, (1 + n) / (10 + n)) at the n-th update (original release, ema.py), so that early samples are not the
    untrained weights. Buffers are copied. `step` counts from 0, so that nothing but the weights need be saved.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.source, self.decay = model, decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, step: int, norm: Tensor) -> None:
        """After the step numbered `step`; a gradient `norm` that is not finite moved no weight and moves no average."""
        share = (1 - min(self.decay, (2 + step) / (11 + step))) * torch.isfinite(norm)
        ours, theirs = list(self.model.parameters()), list(self.source.parameters())
        torch._foreach_lerp_(ours, theirs, [share] * len(ours))
        for mine, other in zip(self.model.buffers(), self.source.buffers()):
            mine.copy_(other)
