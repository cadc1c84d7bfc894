"""Consistency distillation on Gaussian data, whose denoiser and whose path to the picture are known exactly."""

import pytest
import torch
from test_theory_samplers import MEAN, ON_SCHEDULES, STD, gaussian

from latentdiff.diffusion import distillation
from latentdiff.diffusion.samplers import sample
from latentdiff.diffusion.schedule import Schedule, ScheduleConfig, append_dims, sampling_timesteps


def ends_of_paths(schedule):
    """x_t -> the x0 at which the exact path through it ends: quantiles stay quantiles."""

    def jump(x, t):
        alpha, sigma = append_dims(schedule.alpha(t), x), append_dims(schedule.sigma(t), x)
        x0 = MEAN + STD * (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2).sqrt()
        return x0, (x - alpha * x0) / sigma

    return jump


def batch():
    generator = torch.Generator().manual_seed(0)
    z, eps = (torch.randn(400, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    return MEAN + STD * z, torch.arange(400, dtype=torch.float64) * 999 / 399, eps


def rms(student, schedule, steps):
    z, t, eps = batch()
    return distillation.error(student, gaussian(schedule), z, t, eps, schedule, steps).square().mean().sqrt().item()


@ON_SCHEDULES
def test_who_names_the_ends_of_the_paths_agrees_with_himself_and_who_names_the_mean_does_not(schedule):
    exact = [rms(ends_of_paths(schedule), schedule, steps) for steps in (50, 200)]
    assert exact[0] < 0.05 and exact[1] < exact[0] / 2
    assert rms(gaussian(schedule), schedule, 50) > 3 * exact[0]


@ON_SCHEDULES
def test_a_step_that_ends_at_the_picture_is_held_against_the_teacher(schedule):
    z, t, eps = (x[:5] for x in batch())
    said = distillation.error(lambda x, t: (0 * x, x), gaussian(schedule), z, t, eps, schedule, 4)  # t below 250
    assert torch.allclose(-said, gaussian(schedule)(schedule.diffuse(z, eps, t), t)[0])


@ON_SCHEDULES
def test_only_what_is_said_of_x_t_has_a_gradient(schedule):
    z, t, eps = batch()
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    x = schedule.diffuse(z, eps, t)
    distillation.error(lambda x, t: (scale * x, x), gaussian(schedule), z, t, eps, schedule, 50).sum().backward()
    assert scale.grad.item() == pytest.approx(x.sum().item())


@ON_SCHEDULES
def test_one_jump_draws_the_data_and_more_keep_them(schedule):
    generator = torch.Generator().manual_seed(1)
    noise = lambda: torch.randn(20_000, 1, generator=generator, dtype=torch.float64)  # noqa: E731
    for steps in (1, 4):
        *_, x0 = sample("lcm", ends_of_paths(schedule), noise(), sampling_timesteps(steps, schedule), schedule, noise=noise)
        assert x0.mean().item() == pytest.approx(MEAN, abs=0.05) and x0.std().item() == pytest.approx(STD, rel=0.05)


def test_the_student_is_asked_with_a_gradient_first():
    """Half copies of weights that autocast keeps from where there is none have none later (torch 2.6)."""
    asked, (z, t, eps), schedule = [], batch(), Schedule(ScheduleConfig())

    def student(x, t):
        asked.append(torch.is_grad_enabled())
        return x, x

    distillation.error(student, gaussian(schedule), z, t, eps, schedule, 50)
    assert asked == [True, False]
