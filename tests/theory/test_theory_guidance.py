"""Guidance on Gaussian data with known posteriors: the samples have the posterior's mean and covariance."""

import math
from collections.abc import Iterator

import pytest
import torch
from test_theory_samplers import alpha_sigma
from torch import Tensor

from latentdiff.diffusion.guidance import blend_known, classifier_guidance, image_guidance
from latentdiff.diffusion.samplers import Denoise, broadcast_t, sample
from latentdiff.diffusion.schedule import Schedule, ScheduleConfig, sampling_timesteps

# schedules that end in pure noise, which the samples below start from
SCHEDULES = {kind: Schedule(ScheduleConfig(kind=kind)) for kind in ("cosine", "flow")}
ON_SCHEDULES = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
TS = sampling_timesteps(100, SCHEDULES["cosine"], "quadratic")  # the same on every schedule


def normal(schedule: Schedule, mean: float = 0.0, std: float = 1.0) -> Denoise:
    """The exact denoiser of data N(mean, std²)."""

    def denoise(x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = alpha_sigma(schedule, t, x)
        z = (x - alpha * mean) / (alpha**2 * std**2 + sigma**2)
        return mean + alpha * std**2 * z, sigma * z

    return denoise


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def sample_x0(denoise: Denoise, schedule: Schedule, x: Tensor) -> Tensor:
    *_, x0 = sample("ddim", denoise, x, TS, schedule)
    return x0


# ---- image guidance: y = u·x + noise is observed; nothing is known about the direction orthogonal to u


Y, Y_STD, U = 2.0, 0.5, torch.tensor([3 / 5, 4 / 5], dtype=torch.float64)


def measurement_loss(x0: Tensor) -> Tensor:
    return (x0 @ U - Y).square() / 2


def anisotropic(schedule: Schedule) -> Denoise:
    """The exact denoiser of N(0, C), C with variance 9 along one axis and 1/4 along the other."""
    variances = torch.tensor([9.0, 0.25], dtype=torch.float64)

    def denoise(x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = alpha_sigma(schedule, t, x)
        z = x / (alpha**2 * variances + sigma**2)
        return alpha * variances * z, sigma * z

    return denoise


@ON_SCHEDULES
@pytest.mark.parametrize(("denoiser", "variances"), [(normal, (1.0, 1.0)), (anisotropic, (9.0, 0.25))])
def test_image_guidance_samples_from_the_posterior(denoiser, variances: tuple, schedule: Schedule) -> None:
    denoise = image_guidance(denoiser(schedule), measurement_loss, 1 / Y_STD**2, schedule)
    x0, prior = sample_x0(denoise, schedule, noise(4000, 2)), torch.tensor(variances, dtype=torch.float64).diag()
    gain = prior @ U / (U @ prior @ U + Y_STD**2)
    assert x0.mean(0).tolist() == pytest.approx((gain * Y).tolist(), abs=0.06)
    assert x0.T.cov().flatten().tolist() == pytest.approx(
        (prior - gain[:, None] * (U @ prior)).flatten().tolist(), abs=0.1
    )


@pytest.mark.parametrize("scale", [-1 / Y_STD**2, 0.0], ids=["the sign of the paper", "none"])
def test_image_guidance_with_a_wrong_scale_misses_the_posterior(scale: float) -> None:
    schedule = SCHEDULES["cosine"]
    denoise = image_guidance(normal(schedule), measurement_loss, scale, schedule)
    projection = sample_x0(denoise, schedule, noise(4000, 2)) @ U
    assert projection.mean() < 0.1 if scale == 0 else projection.mean() < -1  # the target is 2


# ---- classifier guidance: two classes at -1 and 1


def mixture(schedule: Schedule, std: float) -> tuple[Denoise, object]:
    """The exact denoiser of the even mixture of N(-1, std²) and N(1, std²), and log p(second | x_t), summed."""
    low, high = normal(schedule, -1.0, std), normal(schedule, 1.0, std)

    def log_p(x: Tensor, t: float | Tensor) -> Tensor:
        alpha, sigma = alpha_sigma(schedule, t, x)
        return torch.nn.functional.logsigmoid(2 * alpha * x / (alpha**2 * std**2 + sigma**2)).sum(1)

    def denoise(x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        p = log_p(x, t).exp()[:, None]
        return tuple((1 - p) * a + p * b for a, b in zip(low(x, t), high(x, t)))

    return denoise, log_p


@ON_SCHEDULES
def test_classifier_guidance_of_scale_1_samples_the_class(schedule: Schedule) -> None:
    denoise, log_p = mixture(schedule, 0.5)
    x0 = sample_x0(classifier_guidance(denoise, log_p, 1.0, schedule), schedule, noise(4000, 1))
    assert x0.mean().item() == pytest.approx(1, abs=0.03) and x0.std().item() == pytest.approx(0.5, rel=0.05)
    plain = sample_x0(denoise, schedule, noise(4000, 1))
    assert plain.mean().item() == pytest.approx(0, abs=0.06)
    assert plain.std().item() == pytest.approx(math.sqrt(1.25), rel=0.05)


def test_the_wrong_sign_samples_the_other_class_and_a_larger_scale_goes_further() -> None:
    schedule = SCHEDULES["cosine"]
    denoise, log_p = mixture(schedule, 0.5)
    means = [sample_x0(classifier_guidance(denoise, log_p, s, schedule), schedule, noise(1000, 1)).mean().item()
             for s in (-1.0, 0.0, 0.5, 1.0, 3.0)]  # fmt: skip
    assert means == sorted(means) and means[0] < -0.3 and means[-1] > 1.05


@ON_SCHEDULES
def test_guidance_keeps_x(schedule: Schedule) -> None:
    x, t = noise(5, 2), torch.tensor([10.0, 300.0, 600.0, 900.0, 990.0], dtype=torch.float64)
    alpha, sigma = alpha_sigma(schedule, t, x)
    denoise, log_p = mixture(schedule, 0.5)
    for guided in (
        classifier_guidance(denoise, log_p, 3.0, schedule),
        image_guidance(denoise, measurement_loss, 3.0, schedule),
    ):
        x0, eps = guided(x, t)
        assert torch.allclose(alpha * x0 + sigma * eps, x) and not torch.allclose(x0, denoise(x, t)[0], atol=1e-3)


# ---- known pixels: two correlated pixels, one is known


def correlated(schedule: Schedule, rho: float) -> Denoise:
    """The exact denoiser of two pixels [B, 1, 1, 2] of unit variance and correlation rho."""
    covariance = torch.tensor([[1, rho], [rho, 1]], dtype=torch.float64)

    def denoise(x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = (f(broadcast_t(t, x))[0].item() for f in (schedule.alpha, schedule.sigma))
        z = x @ torch.linalg.inv(alpha**2 * covariance + sigma**2 * torch.eye(2, dtype=torch.float64))
        return alpha * z @ covariance, sigma * z

    return denoise


@pytest.mark.parametrize("rho", [0.9, 0.0])
def test_blending_known_pixels_samples_the_unknown_ones_to_match(rho: float) -> None:
    schedule, ts = SCHEDULES["cosine"], sampling_timesteps(250, SCHEDULES["cosine"])
    known = torch.tensor([1.5, 0.0], dtype=torch.float64).view(1, 1, 1, 2)
    mask = torch.tensor([1.0, 0.0], dtype=torch.float64).view(1, 1, 1, 2)
    seeds: Iterator[int] = iter(range(1000))
    next_noise = lambda: noise(2000, 1, 1, 2, seed=next(seeds))  # noqa: E731
    denoise = blend_known(correlated(schedule, rho), known, mask, next_noise, schedule)
    *_, x0 = sample("ddpm", denoise, next_noise(), ts, schedule, noise=next_noise)
    assert x0[..., 0].sub(1.5).abs().max() < 0.1
    unknown = x0[..., 1].mean().item()
    assert 0.6 * 1.5 * rho <= unknown + 0.05 <= 1.5 * rho + 0.1  # at most the posterior mean, or a little less
