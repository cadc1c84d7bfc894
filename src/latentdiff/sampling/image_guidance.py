"""Guiders for image guidance (paper, app. C): what a drawn picture should be like, as a loss of its latent, x0 -> [B].

Any callable is one; here are those that compare the picture with another of the same or of a smaller size.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from latentdiff.diffusion.guidance import Guider

Distance = Callable[[Tensor, Tensor], Tensor]  # two pictures [B, 3, H, W] -> [B, ...]


def squares(x: Tensor, target: Tensor) -> Tensor:
    """|x - target|² / 2 [B]: -log N(target; x, 1) but for a constant."""
    return (x - target).square().flatten(1).sum(1) / 2


def resembles(target: Tensor, decode: Callable[[Tensor], Tensor], distance: Distance = squares) -> Guider:
    """The distance of the decoded picture, made as small as the target by bicubic means, from target [B, 3, h, w].

    An unconditional model under this is an upsampler. distance: squares, or an LPIPSDistance.
    """

    def loss(x0: Tensor) -> Tensor:
        x = F.interpolate(decode(x0), size=target.shape[2:], mode="bicubic", antialias=True)
        return distance(x, target).flatten()  # [B]

    return loss
