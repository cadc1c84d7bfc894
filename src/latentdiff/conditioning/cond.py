"""Cond: the three inputs of the U-Net that conditions use."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cond:
    """The conditioning inputs of the U-Net; an input that is not used is None.

    concat        [B, C, h, w]  joined to z_t along the channels
    context       [B, L, D]     attended to by cross-attention; or cached keys and values (UNet.project_kv)
    context_mask  [B, L] bool   True where a context token may be attended to (None: all)
    vector        [B, D]        added to the timestep embedding
    """

    concat: Tensor | None = None
    context: Tensor | None = None
    context_mask: Tensor | None = None
    vector: Tensor | None = None

    def __or__(self, other: "Cond") -> "Cond":
        """Join two conditions: concat along channels, context along tokens, vectors by sum."""
        return Cond(
            concat=_join(self.concat, other.concat, lambda a, b: torch.cat([a, b], dim=1)),
            context=_join(self.context, other.context, lambda a, b: torch.cat([a, b], dim=1)),
            context_mask=_join_masks(self, other),
            vector=_join(self.vector, other.vector, torch.add),
        )

    def map(self, function) -> "Cond":
        """The Cond with `function` applied to each of its tensors."""
        return Cond(**{f.name: None if (x := getattr(self, f.name)) is None else function(x) for f in fields(self)})


def cat(conds: list[Cond]) -> Cond:
    """Stack along the batch: cat([uncond, cond]) is one batch of 2B."""
    columns = {f.name: [getattr(cond, f.name) for cond in conds] for f in fields(Cond)}
    return Cond(**{name: None if xs[0] is None else torch.cat(xs) for name, xs in columns.items()})


def _join(a, b, join):
    return b if a is None else a if b is None else join(a, b)


def _join_masks(a: Cond, b: Cond) -> Tensor | None:
    if a.context_mask is None and b.context_mask is None:
        return None
    masks = [
        c.context.new_ones(c.context.shape[:2], dtype=torch.bool) if c.context_mask is None else c.context_mask
        for c in (a, b)
        if c.context is not None
    ]
    return torch.cat(masks, dim=1)
