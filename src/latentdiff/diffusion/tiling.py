"""Patch-wise sampling: a network that sees a large latent in overlapping tiles, so that memory stays bounded."""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from latentdiff.conditioning.cond import Cond
from latentdiff.layers import blend

Network = Callable[[Tensor, Tensor, Cond], Tensor]
GOLDEN = 0.6180339887498949  # its multiples, modulo 1, spread evenly over 0 to 1


def patchwise(network: Network, tile: int, overlap: int) -> Network:
    """A network(x, t, cond) that runs `network` on tiles of x and of cond.concat and blends what it predicts.

    All predictions are linear in (x0, eps) at a given x and t, so blending them blends both. context and vector are
    shown to every tile. tile and overlap are in latent places.

    At every t the tiles lie elsewhere, so that what one decides for itself, such as the ground, the next steps' tiles
    see beside what its neighbours did.
    """

    def predict(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        def part(rows: slice, columns: slice) -> Tensor:
            near = cond if cond.concat is None else replace(cond, concat=cond.concat[:, :, rows, columns])
            return network(x[:, :, rows, columns], t, near)

        return blend(part, *x.shape[2:], tile, overlap, shift=moved(t[0]))

    return predict


def moved(t: Tensor | float) -> float:
    """How far tiles lie from their first places at t, as a share of the way to the next one's (layers.windows)."""
    return GOLDEN * float(t) % 1


def level(noise: Tensor, tile: int) -> Tensor:
    """The first noise [B, C, h, w] with the same mean over squares of a quarter tile; as it is if one tile holds all.

    What a picture is like as a whole, such as its ground, a network reads from the mean of what it is given. Where
    tiles have means of their own, each decides for itself, and what is blended of them is neither.
    """
    if max(noise.shape[2:]) <= tile:
        return noise
    squares = [-(-side // max(2, tile // 4)) for side in noise.shape[2:]]
    low = F.interpolate(F.adaptive_avg_pool2d(noise, squares), noise.shape[2:], mode="nearest-exact")
    (std, mean), (less, gone) = (torch.std_mean(x, (2, 3), keepdim=True) for x in (noise, noise - low))
    return mean + (noise - low - gone) * (std / less)
