"""Consistency distillation on Gaussian data, whose denoiser and whose path to the image are known exactly."""

import pytest
import torch
from test_theory_samplers import MEAN, ON_SCHEDULES, STD, alpha_sigma, gaussian

from latentdiff.diffusion.distillation import consistency_error
from latentdiff.diffusion.samplers import sample
from latentdiff.diffusion.schedule import Schedule, ScheduleConfig, sampling_timesteps


def exact_student(schedule):
    """x_t -> the x0 at which the exact path through it ends, which is the same quantile."""

    def student(x, t):
        alpha, sigma = alpha_sigma(schedule, t, x)
        x0 = MEAN + STD * (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2).sqrt()
        return x0, (x - alpha * x0) / sigma

    return student


def batch():
    generator = torch.Generator().manual_seed(0)
    z, eps = (torch.randn(400, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    return MEAN + STD * z, torch.arange(400, dtype=torch.float64) * 999 / 399, eps


def rms(student, schedule, steps):
    z, t, eps = batch()
    return consistency_error(student, gaussian(schedule), z, t, eps, schedule, steps).square().mean().sqrt().item()


@ON_SCHEDULES
def test_the_exact_student_is_consistent_and_the_posterior_mean_is_not(schedule):
    exact = [rms(exact_student(schedule), schedule, steps) for steps in (50, 200)]
    assert exact[0] < 0.05 and exact[1] < exact[0] / 2
    assert rms(gaussian(schedule), schedule, 50) > 3 * exact[0]


@ON_SCHEDULES
def test_where_a_step_ends_at_the_clean_image_the_target_is_the_teacher(schedule):
    z, t, eps = (x[:5] for x in batch())
    error = consistency_error(lambda x, t: (0 * x, x), gaussian(schedule), z, t, eps, schedule, 4)  # t below 250
    assert torch.allclose(-error, gaussian(schedule)(schedule.diffuse(z, eps, t), t)[0])


@ON_SCHEDULES
def test_only_the_prediction_at_x_t_has_a_gradient(schedule):
    z, t, eps = batch()
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    x = schedule.diffuse(z, eps, t)
    consistency_error(lambda x, t: (scale * x, x), gaussian(schedule), z, t, eps, schedule, 50).sum().backward()
    assert scale.grad.item() == pytest.approx(x.sum().item())


@ON_SCHEDULES
def test_one_and_four_steps_of_the_exact_student_sample_the_data(schedule):
    generator = torch.Generator().manual_seed(1)
    noise = lambda: torch.randn(20_000, 1, generator=generator, dtype=torch.float64)  # noqa: E731
    for steps in (1, 4):
        ts = sampling_timesteps(steps, schedule)
        *_, x0 = sample("lcm", exact_student(schedule), noise(), ts, schedule, noise=noise)
        assert x0.mean().item() == pytest.approx(MEAN, abs=0.05) and x0.std().item() == pytest.approx(STD, rel=0.05)


def test_the_student_is_called_with_gradient_first():
    """Autocast would reuse weights that it has cast under no_grad, and they have no gradient (torch 2.6)."""
    grad_enabled, (z, t, eps), schedule = [], batch(), Schedule(ScheduleConfig())

    def student(x, t):
        grad_enabled.append(torch.is_grad_enabled())
        return x, x

    consistency_error(student, gaussian(schedule), z, t, eps, schedule, 50)
    assert grad_enabled == [True, False]
