"""Patch-wise sampling: a network that sees a large latent in overlapping tiles, so that memory stays bounded."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from latentdiff.cond import Cond
from latentdiff.tiles import blend

Network = Callable[[Tensor, Tensor, Cond], Tensor]
GOLDEN = 0.6180339887498949  # its multiples, modulo 1, never come near one another


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

        return blend(part, *x.shape[2:], tile, overlap, shift=GOLDEN * float(t[0]) % 1)

    return predict
