"""Latents that turn and shrink with their picture (EQ-VAE, Kouzelis et al. 2025): smoother, and easier to draw."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from latentdiff import rng

SMALLEST, PIXELS = 0.25, 32  # share of a side; and discriminators and LPIPS need this many
Warp = Callable[[Tensor], Tensor]  # [B, C, h, w] of a latent or [B, 3, H, W] of its picture, warped alike


def same(x: Tensor) -> Tensor:
    return x


def draw(share: float, seed: int, step: int, sides: tuple[int, int], factor: int) -> Warp:
    """In this share of steps a turn by quarters and a shrinking of the latent's sides (h, w), whose picture is `factor`
    times as large; otherwise `same`.

    Decoding the warped latent must give the warped picture. One warp for the batch: its sizes must agree.
    """
    if not share:
        return same
    chance, turn, size = ((rng.key(seed, step, "warp", i) % 2**32) / 2**32 for i in range(3))
    if chance >= share:
        return same
    smallest = min(1.0, max(SMALLEST, PIXELS / (factor * min(sides))))
    scale = smallest + (1 - smallest) * size
    small = [max(1, round(side * scale)) for side in sides]

    def warp(x: Tensor) -> Tensor:
        times = x.shape[2] // sides[0]  # 1 for the latent, factor for its picture
        x = F.interpolate(x, size=[times * side for side in small], mode="bicubic", antialias=True)
        return x.rot90(int(4 * turn), dims=(2, 3)).contiguous()

    return warp
