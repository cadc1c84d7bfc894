"""Random warps of image and latent that regularize the latent space (EQ-VAE, Kouzelis et al. 2025)."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from latentdiff import rng

MIN_SCALE, MIN_PIXELS = 0.25, 32  # per side; discriminator and LPIPS need 32 pixels
Warp = Callable[[Tensor], Tensor]  # warps a latent [B, C, h, w] and its image [B, 3, H, W] alike


def identity(x: Tensor) -> Tensor:
    return x


def sample_warp(fraction: float, seed: int, step: int, size: tuple[int, int], factor: int) -> Warp:
    """In a fraction of the steps a downscaling and a rotation by a multiple of 90 degrees; otherwise `identity`.

    size: (h, w) of the latent, whose image is `factor` times as large. The whole batch has the same warp.
    """
    if not fraction:
        return identity
    chance, rotation, size_key = ((rng.key(seed, step, "warp", i) % 2**32) / 2**32 for i in range(3))
    if chance >= fraction:
        return identity
    smallest = min(1.0, max(MIN_SCALE, MIN_PIXELS / (factor * min(size))))
    scale = smallest + (1 - smallest) * size_key
    target = [max(1, round(side * scale)) for side in size]

    def warp(x: Tensor) -> Tensor:
        per_side = x.shape[2] // size[0]  # 1 for the latent, factor for the image
        x = F.interpolate(x, size=[per_side * side for side in target], mode="bicubic", antialias=True)
        return x.rot90(int(4 * rotation), dims=(2, 3)).contiguous()  # [B, C, h', w'] or [B, C, w', h']

    return warp
