"""PSNR and SSIM against closed forms and an explicit loop."""

import math

import pytest
import torch

from latentdiff.evaluation.image_metrics import psnr, ssim


def pair(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 14, 17, generator=generator, dtype=torch.float64) * 2 - 1
    y = (x + 0.3 * torch.randn(x.shape, generator=generator, dtype=torch.float64)).clamp(-1, 1)
    return x.to(dtype), y.to(dtype)


def test_psnr_of_a_constant_error_equals_its_closed_form():
    x = torch.zeros(2, 3, 4, 4, dtype=torch.float64)
    y = x + torch.tensor([0.2, 0.02], dtype=torch.float64)[:, None, None, None]  # 0.1 and 0.01 of the range
    torch.testing.assert_close(psnr(x, y), torch.tensor([20.0, 40.0], dtype=torch.float64))


def test_psnr_of_equal_images_is_finite_and_values_outside_the_range_are_clamped():
    x = torch.ones(1, 3, 4, 4)
    assert psnr(x, x).item() == 100
    assert psnr(x, x + 5).item() == 100  # both are clamped to white
    assert psnr(x, x - 0.2).item() == pytest.approx(20, abs=1e-4)  # inside the range nothing is clamped


def slow_ssim(x: torch.Tensor, y: torch.Tensor) -> float:
    """Wang et al. 2004, eq. 13, one window and one pixel at a time, for one channel in [0, 1]."""
    gaussian = [[math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / 4.5) for j in range(11)] for i in range(11)]
    weight = torch.tensor(gaussian, dtype=torch.float64) / sum(map(sum, gaussian))
    total, count = 0.0, 0
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            mean_a, mean_b = (weight * a).sum(), (weight * b).sum()
            var_a, var_b = (weight * (a - mean_a) ** 2).sum(), (weight * (b - mean_b) ** 2).sum()
            cov = (weight * (a - mean_a) * (b - mean_b)).sum()
            numerator = (2 * mean_a * mean_b + 1e-4) * (2 * cov + 9e-4)
            total += (numerator / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))).item()
            count += 1
    return total / count


def test_ssim_equals_an_explicit_loop_over_windows():
    x, y = pair()
    planes = (x + 1) / 2, (y + 1) / 2
    expected = [sum(slow_ssim(planes[0][b, c], planes[1][b, c]) for c in range(3)) / 3 for b in range(2)]
    values = ssim(x, y)
    assert values.dtype == torch.float64
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=0)
    assert (values < 0.98).all()  # lowered by the noise


def test_ssim_is_one_for_equal_images_and_negative_for_opposite_ones():
    x, _ = pair()
    torch.testing.assert_close(ssim(x, x), torch.ones(2, dtype=torch.float64))
    assert (ssim(x, -x) < -0.5).all()


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_each_image_has_its_own_value_and_half_precision_is_computed_in_float32(metric):
    x, y = pair(torch.float32)
    torch.testing.assert_close(metric(x[1:], y[1:])[0], metric(x, y)[1])
    with torch.autocast("cpu", torch.bfloat16):
        half = metric(x.bfloat16(), y.bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, metric(x.bfloat16().float(), y.bfloat16().float()), rtol=0, atol=0)


def test_ssim_rejects_images_smaller_than_its_window():
    with pytest.raises(AssertionError, match="11 x 11"):
        ssim(torch.zeros(1, 3, 10, 32), torch.zeros(1, 3, 10, 32))
