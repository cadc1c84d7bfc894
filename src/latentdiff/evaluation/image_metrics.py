"""PSNR and SSIM of pairs of images, one number per image."""

import math

import torch
from torch import Tensor

from latentdiff.autoencoder.bottleneck import upcast

WINDOW, SIGMA = 11, 1.5  # pixels, of the Gaussian window of SSIM (Wang et al. 2004, section III-B)


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of y against x, [B, C, H, W] in [-1, 1] -> [B]; 100 for equal images."""
    mse = (_to_unit_range(x) - _to_unit_range(y)).square().mean(dim=(1, 2, 3))
    return -10 * torch.log10(mse.clamp(min=1e-10))  # the peak is 1


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004, eq. 13), [B, C, H, W] in [-1, 1] -> [B]; H and W are at least 11.

    The mean over channels and over all windows inside the image.
    """
    assert min(x.shape[2:]) >= WINDOW, f"SSIM needs images of at least {WINDOW} x {WINDOW}, but these are {x.shape[2:]}"
    x, y = _to_unit_range(x), _to_unit_range(y)
    mean_x, mean_y = _gaussian_blur(x), _gaussian_blur(y)  # [B, C, H-10, W-10]
    var_x = _gaussian_blur(x * x) - mean_x.square()
    var_y = _gaussian_blur(y * y) - mean_y.square()
    cov = _gaussian_blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    return (luminance * (2 * cov + c2) / (var_x + var_y + c2)).mean(dim=(1, 2, 3))


def _to_unit_range(x: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1], clamped; half precision is upcast, float64 stays."""
    return ((upcast(x) + 1) / 2).clamp(0, 1)


def _gaussian_blur(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, C, H-10, W-10]."""
    weights = [math.exp(-((i - WINDOW // 2) ** 2) / (2 * SIGMA**2)) for i in range(WINDOW)]
    for dim in (2, 3):
        size = x.shape[dim] - WINDOW + 1
        # not a convolution, which autocast and TF32 would round by more than SSIM's constants
        x = sum(weight / sum(weights) * x.narrow(dim, i, size) for i, weight in enumerate(weights))
    return x
