"""Coordinates: where each place of the latent lies, as two more channels (Liu et al. 2018, CoordConv).

A convolution knows its place only by the padding at the border, so "above" is learned late; told, it is learned early.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latentdiff.cond import Cond


@dataclass(frozen=True)
class Coordinates:
    scale: float = 1.0  # the channels run from -scale to scale, from left to right and from top to bottom


class CoordinatesCondition(nn.Module):
    """batch["size"], the latent's (h, w) -> Cond(concat [B, 2, h, w]), B as in `drop`; never hidden."""

    dropout, context_dim, concat_channels, vector_dim = 0.0, 0, 2, 0

    def __init__(self, config: Coordinates) -> None:
        super().__init__()
        self.scale = config.scale

    def forward(self, batch: dict, drop: Tensor) -> Cond:
        sides = [torch.linspace(-self.scale, self.scale, side, device=drop.device) for side in batch["size"]]
        planes = torch.stack(torch.meshgrid(*sides, indexing="ij"))  # [2, h, w]
        return Cond(concat=planes.expand(len(drop), -1, -1, -1))
