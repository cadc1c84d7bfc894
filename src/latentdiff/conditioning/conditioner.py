"""The conditioner: all conditions of a task, joined into one Cond.

A part is a module part(batch, drop) -> Cond: `batch` is a dict of fields, `drop` a bool [B], True for the samples from
which the part hides what it knows. It has `dropout`, the share of samples that training hides (0: never hidden), and
`context_dim`, `concat_channels` and `vector_dim`, what it brings to each door of the U-Net (0: nothing).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from latentdiff import rng
from latentdiff.conditioning.cond import Cond
from latentdiff.config import UserError


class Conditioner(nn.Module):
    """Joins its parts with `|`; without parts it gives an empty Cond."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.context_dim = self._shared("context_dim")
        self.vector_dim = self._shared("vector_dim")
        self.concat_channels = sum(part.concat_channels for part in parts)
        self.can_hide = any(part.dropout > 0 for part in parts)

    def forward(self, batch: dict, drop: Tensor | Sequence[Tensor]) -> Cond:
        """Fields and what to hide -> Cond.

        drop: one bool [B] per part, or one for all that can be hidden: pictures and masks (dropout 0) then stay.
        """
        if isinstance(drop, Tensor):
            drop = [drop if part.dropout > 0 else torch.zeros_like(drop) for part in self.parts]
        cond = Cond()
        for part, hidden in zip(self.parts, drop, strict=True):
            cond = cond | part(batch, hidden)
        return cond

    def draw_drops(self, keys: Tensor) -> list[Tensor]:
        """What training hides: keys [B] -> one bool [B] per part, each drawn by itself with the part's dropout."""
        u = rng.uniform(keys, (max(1, len(self.parts)),))  # [B, parts]
        return [u[:, i] < part.dropout for i, part in enumerate(self.parts)]

    def _shared(self, name: str) -> int:
        """The width at a door through which several parts go; it must be one."""
        widths = sorted({getattr(part, name) for part in self.parts} - {0})
        if len(widths) > 1:
            raise UserError(f"conditions differ in {name}: {widths}; give them the same dim")
        return widths[0] if widths else 0
