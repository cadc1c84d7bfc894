"""Sampling of large latents: the network sees overlapping tiles, so that memory stays bounded."""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from latentdiff.conditioning.cond import Cond
from latentdiff.diffusion.samplers import broadcast_t
from latentdiff.layers import blend

Network = Callable[[Tensor, Tensor, Cond], Tensor]
GOLDEN_RATIO = 0.6180339887498949  # its multiples modulo 1 are spread evenly over 0..1


def patchwise(network: Network, tile: int, overlap: int) -> Callable[[Tensor, float | Tensor, Cond], Tensor]:
    """A network that runs `network` on tiles of x and cond.concat and blends its outputs.

    Blending outputs blends x0 and eps, since every prediction is linear in them at a given x and t. context and vector
    are the same for all tiles. The tiles move with t, so that no border stays at the same position in all steps.

    Args:
        tile, overlap: in latent positions.
    """

    def tiled(x: Tensor, t: float | Tensor, cond: Cond) -> Tensor:
        ts = broadcast_t(t, x)

        def run_tile(rows: slice, columns: slice) -> Tensor:
            tile_cond = cond if cond.concat is None else replace(cond, concat=cond.concat[:, :, rows, columns])
            return network(x[:, :, rows, columns], ts, tile_cond)

        offset = tile_offset(t if isinstance(t, float) else t[0].item())  # a tensor only in distillation
        return blend(run_tile, *x.shape[2:], tile, overlap, offset=offset)

    return tiled


def tile_offset(t: float) -> float:
    """Shift of the tiles at t, as a fraction of their stride (layers.windows)."""
    return GOLDEN_RATIO * t % 1


def equalize_tile_means(noise: Tensor, tile: int) -> Tensor:
    """The initial noise [B, C, h, w] with equal means over squares of a quarter tile; unchanged if one tile covers it.

    The network infers global properties of an image, such as its background, from the mean of its input. Tiles with
    different means would disagree about them, and blending would mix the results.
    """
    if max(noise.shape[2:]) <= tile:
        return noise
    squares = [-(-side // max(2, tile // 4)) for side in noise.shape[2:]]
    local_means = F.interpolate(F.adaptive_avg_pool2d(noise, squares), noise.shape[2:], mode="nearest-exact")
    centered = noise - local_means
    (std, mean), (centered_std, centered_mean) = (torch.std_mean(x, (2, 3), keepdim=True) for x in (noise, centered))
    return mean + (centered - centered_mean) * (std / centered_std)
