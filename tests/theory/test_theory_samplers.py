"""Samplers and guidance against closed forms: data are Gaussian, so the best denoiser is known exactly."""

import math

import pytest
import torch
from torch import Tensor

from latentdiff.diffusion.guidance import classifier_free, image_guidance
from latentdiff.diffusion.samplers import (
    SAMPLERS,
    Denoise,
    broadcast_t,
    ddim,
    dpmpp_2m,
    heun,
    ipndm,
    noise_levels,
    plms,
    sample,
    unipc,
)
from latentdiff.diffusion.schedule import BETAS, Schedule, ScheduleConfig, append_dims, sampling_timesteps

SCHEDULES = {kind: Schedule(ScheduleConfig(kind=kind)) for kind in ("scaled_linear", "cosine", "flow")}
ON_SCHEDULES = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
MEAN, STD = 0.7, 0.5


def alpha_sigma(schedule: Schedule, t: float | Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    t = broadcast_t(t, x)
    return append_dims(schedule.alpha(t), x), append_dims(schedule.sigma(t), x)


def gaussian(schedule: Schedule, mean: float | Tensor = MEAN, std: float = STD) -> Denoise:
    """The exact denoiser of data N(mean, std²): E[x0 | x_t] and E[eps | x_t]."""

    def denoise(x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = alpha_sigma(schedule, t, x)
        z = (x - alpha * mean) / (alpha**2 * std**2 + sigma**2)
        return mean + alpha * std**2 * z, sigma * z

    return denoise


Z_SCORES = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
DATA = MEAN + STD * Z_SCORES


def quantiles(schedule: Schedule, t: float, mean: float = MEAN, std: float = STD) -> Tensor:
    """Nine quantiles of the noised data at t, which a deterministic sampler must map to those of the data: [9, 1]."""
    t = torch.tensor([t], dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return alpha * mean + (alpha**2 * std**2 + sigma**2).sqrt() * Z_SCORES


@ON_SCHEDULES
@pytest.mark.parametrize("name", ["ddim", "plms", "heun", "dpmpp_2m", "unipc", "ipndm"])
def test_samples_of_a_gaussian_have_its_mean_and_more_steps_reduce_the_error(name: str, schedule: Schedule) -> None:
    errors = []
    for steps in (12, 80):
        ts = sampling_timesteps(steps, schedule, "quadratic")
        *_, x0 = sample(name, gaussian(schedule), quantiles(schedule, 999), ts, schedule)
        assert (x0.mean() - MEAN).abs() < 1e-3
        errors.append((x0 - DATA).abs().max().item())
    assert errors[1] < errors[0] / 2 and errors[1] < (0.03 if name == "ddim" else 0.003)


@ON_SCHEDULES
@pytest.mark.parametrize(("sampler", "order"), [(ddim, 1), (plms, 2), (ipndm, 2), (heun, 2), (dpmpp_2m, 2), (unipc, 3)])
def test_the_error_falls_with_the_order_of_the_sampler(sampler, order: int, schedule: Schedule) -> None:
    first, last, errors = 900.0, 150.0, []  # away from both ends, where log-SNR diverges
    for steps in (160, 320):
        ts = torch.linspace(first, last, steps + 1, dtype=torch.float64)[:-1]
        *_, (x, _) = sampler(gaussian(schedule), quantiles(schedule, first), noise_levels(ts, schedule, last))
        errors.append((x - quantiles(schedule, last)).abs().max().item())
    measured = math.log2(errors[0] / errors[1])
    assert order - 0.35 < measured < order + 0.5, errors


@ON_SCHEDULES
@pytest.mark.parametrize("name", ["ddpm", "dpmpp_2m_sde"])
def test_stochastic_samplers_give_the_right_variance(name: str, schedule: Schedule) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = lambda: torch.randn(20_000, 1, dtype=torch.float64, generator=generator)  # noqa: E731
    mean, mean_plus_std = quantiles(schedule, 999)[[4, 6]]
    x, ts = mean + (mean_plus_std - mean) * noise(), sampling_timesteps(200, schedule, "quadratic")
    *_, x0 = sample(name, gaussian(schedule), x, ts, schedule, noise=noise)
    assert x0.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert x0.std().item() == pytest.approx(STD, rel=0.03)


def test_ddim_with_eta_1_is_a_step_of_ddpm() -> None:
    """Ho et al. 2020, eq. 7: mean coefficients and posterior variance, from the betas."""
    config = ScheduleConfig()
    betas = torch.from_numpy(BETAS["scaled_linear"](config))
    bars = (1 - betas).cumprod(0)
    x = torch.tensor([[1.3]], dtype=torch.float64)
    schedule, x0 = Schedule(config), torch.tensor([[0.4]], dtype=torch.float64)
    for t in (1, 10, 500, 999):
        beta, bar, before = betas[t], bars[t], bars[t - 1]
        mean = before.sqrt() * beta / (1 - bar) * x0 + (1 - beta).sqrt() * (1 - before) / (1 - bar) * x
        variance = beta * (1 - before) / (1 - bar)
        eps = (x - bar.sqrt() * x0) / (1 - bar).sqrt()
        for z in (torch.zeros_like(x), torch.ones_like(x)):
            denoise, noise = (lambda *_, eps=eps: (x0, eps)), lambda z=z: z
            levels = noise_levels(torch.tensor([t]), schedule, last=t - 1.0)
            ((x_before, _),) = ddim(denoise, x, levels, 1.0, noise)
            assert torch.allclose(x_before, mean + variance.sqrt() * z, rtol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_first_step_of_dpm_solver_is_ddim(eta: float) -> None:
    schedule, x, one = SCHEDULES["scaled_linear"], quantiles(SCHEDULES["scaled_linear"], 600), torch.ones(9, 1).double()
    arguments = (gaussian(schedule), x, noise_levels(torch.tensor([600.0]), schedule, 500.0), eta, lambda: one)
    ((a, _),), ((b, _),) = ddim(*arguments), dpmpp_2m(*arguments)
    assert torch.allclose(a, b, rtol=1e-12)


@ON_SCHEDULES
def test_classifier_free_guidance_moves_along_the_condition(schedule: Schedule) -> None:
    """Data N(0, 1), under the condition N(1, 1): guided by s the score is that of N(s, 1)."""
    means = torch.tensor([0.0, 1.0], dtype=torch.float64).repeat_interleave(9)[:, None]
    both = gaussian(schedule, means, 1.0)
    for scale in (0.0, 1.0, 3.0, -1.0):
        denoise = classifier_free(both, scale, 0.0, schedule)
        x = quantiles(schedule, 999, scale, 1.0)
        *_, x0 = sample("heun", denoise, x, sampling_timesteps(50, schedule, "quadratic"), schedule)
        assert x0.mean().item() == pytest.approx(scale, abs=0.02)
    scales, ts = torch.tensor([1.0] * 4 + [3.0] * 5), sampling_timesteps(50, schedule, "quadratic")
    x = quantiles(schedule, 999, 0.0, 1.0)
    *_, x0 = sample("heun", classifier_free(both, scales, 0.0, schedule), x, ts, schedule)
    for samples, scale in ((slice(0, 4), 1.0), (slice(4, 9), 3.0)):
        *_, one_scale = sample("heun", classifier_free(both, scale, 0.0, schedule), x, ts, schedule)
        assert torch.allclose(x0[samples], one_scale[samples])


def test_rescaled_guidance_has_the_contrast_of_the_conditional_prediction_and_keeps_x() -> None:
    schedule, t = SCHEDULES["cosine"], torch.tensor([300.0, 700.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    x, uncond, cond = torch.randn(3, 2, 3, 4, 4, dtype=torch.float64, generator=generator)
    alpha, sigma = alpha_sigma(schedule, t, x)
    both = lambda xx, tt: (torch.cat([uncond, cond]), torch.cat([(x - alpha * g) / sigma for g in (uncond, cond)]))  # noqa: E731
    contrast = lambda x0: x0.flatten(1).std(dim=1)  # noqa: E731
    plain, full, half = (classifier_free(both, 5.0, rescale, schedule)(x, t) for rescale in (0.0, 1.0, 0.5))
    for x0, eps in (plain, full, half):
        assert torch.allclose(alpha * x0 + sigma * eps, x, atol=1e-12)
    assert torch.allclose(contrast(full[0]), contrast(cond)) and (contrast(plain[0]) > 2 * contrast(cond)).all()
    assert torch.allclose(half[0], (plain[0] + full[0]) / 2)


@ON_SCHEDULES
def test_image_guidance_moves_towards_the_target_and_not_away(schedule: Schedule) -> None:
    x, target = quantiles(schedule, 999, 0.0, 1.0), 2.0
    ends = {}
    for scale in (0.0, 1.0, -1.0):
        denoise = image_guidance(
            gaussian(schedule, 0.0, 1.0), lambda x0: (x0 - target).square().sum(dim=1) / 2, scale, schedule
        )
        *_, x0 = sample("ddim", denoise, x, sampling_timesteps(100, schedule, "quadratic"), schedule)
        ends[scale] = x0.mean().item()
    assert ends[0.0] == pytest.approx(0.0, abs=0.02) and 0.8 < ends[1.0] < target and ends[-1.0] < -0.8


def test_all_samplers_are_tested_here() -> None:
    assert set(SAMPLERS) == {"ddpm", "ddim", "plms", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "ipndm", "lcm"}
