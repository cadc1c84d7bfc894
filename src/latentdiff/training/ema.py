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

    def share(self, step: int) -> float:
        """How far the average goes towards the weights after the step numbered `step`."""
        return 1 - min(self.decay, (2 + step) / (11 + step))

    @torch.no_grad()
    def update(self, share: float | Tensor, norm: Tensor) -> None:
        """Go so far; a gradient `norm` that is not finite moved no weight and moves no average."""
        share = share * torch.isfinite(norm)
        ours, theirs = list(self.model.parameters()), list(self.source.parameters())
        if share.device.type == "cuda":  # lerp by a number that the host does not know takes a launch for each
            way = torch._foreach_sub(theirs, ours)
            torch._foreach_mul_(way, share)
            torch._foreach_add_(ours, way)
        else:
            torch._foreach_lerp_(ours, theirs, [share] * len(ours))
        for mine, other in zip(self.model.buffers(), self.source.buffers()):
            mine.copy_(other)
