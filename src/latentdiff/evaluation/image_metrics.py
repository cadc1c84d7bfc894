"""How near a reconstruction is to its picture: PSNR and SSIM, one number per image."""

import math

import torch
from torch import Tensor

WINDOW, SIGMA = 11, 1.5  # pixels (Wang et al. 2004, section III-B)


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of y against x, [B, C, H, W] in [-1, 1] -> [B]. Equal images give 100."""
    mse = (_unit(x) - _unit(y)).square().mean(dim=(1, 2, 3))
    return -10 * torch.log10(mse.clamp(min=1e-10))  # of a peak of 1


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004, eq. 13), [B, C, H, W] in [-1, 1] -> [B].

    The mean over channels and over the windows that lie inside the image, so H and W are at least 11.
    """
    assert min(x.shape[2:]) >= WINDOW, f"SSIM looks through windows of {WINDOW} x {WINDOW} pixels, not at {x.shape[2:]}"
    x, y = _unit(x), _unit(y)
    mean_x, mean_y = _blur(x), _blur(y)  # [B, C, H-10, W-10]
    var_x = _blur(x * x) - mean_x.square()
    var_y = _blur(y * y) - mean_y.square()
    cov = _blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    likeness = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    return (likeness * (2 * cov + c2) / (var_x + var_y + c2)).mean(dim=(1, 2, 3))


def _unit(x: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1], cut to that range as a stored picture is; half types are upcast, float64 stays."""
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return ((x + 1) / 2).clamp(0, 1)


def _blur(x: Tensor) -> Tensor:
    """Means weighted by a Gaussian window: [B, C, H, W] -> [B, C, H-10, W-10].

    Sums of shifted images, since autocast and TF32 would round a convolution by more than SSIM's constants.
    """
    bell = [math.exp(-((i - WINDOW // 2) ** 2) / (2 * SIGMA**2)) for i in range(WINDOW)]
    for dim in (2, 3):
        size = x.shape[dim] - WINDOW + 1
        x = sum(weight / sum(bell) * x.narrow(dim, i, size) for i, weight in enumerate(bell))
    return x
