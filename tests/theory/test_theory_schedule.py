"""Schedules against closed forms; parameterizations against their inverse."""

import math

import pytest
import torch

from latentdiff.config import UserError
from latentdiff.diffusion.parameterization import TARGET_COEFFS, check_parameterization, to_x0_eps, training_target
from latentdiff.diffusion.schedule import Schedule, ScheduleConfig

VP = ("scaled_linear", "linear", "sqrt", "cosine", "sigmoid")
INTEGER_T = torch.arange(1000, dtype=torch.float64)


@pytest.mark.parametrize("kind", VP)
def test_a_variance_preserving_schedule_keeps_the_variance_and_falls(kind: str) -> None:
    schedule = Schedule(ScheduleConfig(kind=kind))
    t = torch.linspace(0, 999, 3001, dtype=torch.float64)
    assert torch.allclose(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, torch.ones_like(t), atol=1e-14)
    assert (schedule.log_snr(t).diff() < 0).all()


def test_integer_timesteps_are_exact_and_others_are_interpolated_in_log_snr() -> None:
    schedule = Schedule(ScheduleConfig())
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas_cumprod = (1 - betas).cumprod(0)
    assert torch.allclose(schedule.alpha(INTEGER_T) ** 2, alphas_cumprod, rtol=1e-13, atol=0)
    middle = (schedule.log_snr(INTEGER_T[:-1]) + schedule.log_snr(INTEGER_T[1:])) / 2
    assert torch.allclose(schedule.log_snr(INTEGER_T[:-1] + 0.5), middle, rtol=1e-12)


@pytest.mark.parametrize(
    ("start", "end", "last_alpha", "crossing"),  # crossing: t at which signal equals noise; of the paper's tasks
    [
        (0.0015, 0.0195, 0.0119, 254),
        (0.0015, 0.0155, 0.0259, 268),
        (0.0015, 0.0205, 0.0098, 251),
        (0.00085, 0.012, 0.0683, 354),
    ],
)
def test_the_released_schedules_have_their_known_end_and_crossing(start, end, last_alpha: float, crossing: int) -> None:
    schedule = Schedule(ScheduleConfig(beta_start=start, beta_end=end))
    assert schedule.alpha(INTEGER_T[-1:]).item() == pytest.approx(last_alpha, abs=1e-4)
    assert int((schedule.log_snr(INTEGER_T) > 0).sum()) == pytest.approx(crossing, abs=1)


def test_the_cosine_schedule_is_its_formula_where_betas_are_not_clipped() -> None:
    schedule = Schedule(ScheduleConfig(kind="cosine"))
    angle = ((INTEGER_T + 1) / 1000 + 0.008) / 1.008 * math.pi / 2
    expected = angle.cos() ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    assert torch.allclose(schedule.alpha(INTEGER_T)[:990] ** 2, expected[:990], rtol=1e-10)


def test_the_sigmoid_schedule_is_its_formula_where_betas_are_not_clipped() -> None:
    schedule, s = Schedule(ScheduleConfig(kind="sigmoid")), lambda x: 1 / (1 + math.exp(-x))
    for t in (0, 99, 499, 899):
        expected = (s(3) - s(6 * (t + 1) / 1000 - 3)) / (s(3) - s(-3))
        assert schedule.alpha(INTEGER_T[t : t + 1]).item() ** 2 == pytest.approx(expected, rel=1e-9)
    assert schedule.alpha(INTEGER_T[499:500]).item() ** 2 == pytest.approx(0.5)


def test_flow_is_the_straight_path() -> None:
    schedule, t = Schedule(ScheduleConfig(kind="flow")), torch.linspace(0, 999, 1234, dtype=torch.float64)
    assert torch.allclose(schedule.sigma(t), (t + 1) / 1000, atol=1e-14)
    assert torch.allclose(schedule.alpha(t), 1 - (t + 1) / 1000, atol=1e-14)
    assert schedule.alpha(INTEGER_T[-1:]).item() == 0 and schedule.sigma(INTEGER_T[-1:]).item() == 1


@pytest.mark.parametrize("kind", VP)
def test_zero_terminal_snr_ends_without_signal_and_keeps_the_first_alpha(kind: str) -> None:
    before, after = (Schedule(ScheduleConfig(kind=kind, zero_terminal_snr=zero)) for zero in (False, True))
    assert after.alpha(INTEGER_T[-1:]).item() == 0
    assert after.alpha(INTEGER_T[:1]).item() == pytest.approx(before.alpha(INTEGER_T[:1]).item(), rel=1e-12)
    near_end = torch.linspace(997, 999, 201, dtype=torch.float64)
    assert (after.alpha(near_end).diff() < 0).all() and after.sigma(near_end).isfinite().all()


@pytest.mark.parametrize("kind", [*VP, "flow"])
def test_shift_multiplies_noise_over_signal(kind: str) -> None:
    plain, shifted = (Schedule(ScheduleConfig(kind=kind, snr_shift=shift)) for shift in (1.0, 3.0))
    t = INTEGER_T[:-1]
    ratio = (shifted.sigma(t) / shifted.alpha(t)) / (plain.sigma(t) / plain.alpha(t))
    assert torch.allclose(ratio, torch.full_like(t, 3.0), rtol=1e-9)


@pytest.mark.parametrize("schedule", ["scaled_linear", "linear", "cosine", "flow"])
@pytest.mark.parametrize("kind", TARGET_COEFFS)
def test_x0_and_eps_are_recovered_from_the_training_target(kind: str, schedule: str) -> None:
    path = Schedule(ScheduleConfig(kind=schedule))
    t = torch.tensor([0, 1.5, 300, 700.25, 980], dtype=torch.float64)
    x0, eps = torch.randn(2, 5, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alpha, sigma = path.alpha(t), path.sigma(t)
    output = training_target(kind, x0, eps, alpha, sigma)
    x0_solved, eps_solved = to_x0_eps(kind, output, path.diffuse(x0, eps, t), alpha, sigma)
    assert torch.allclose(x0_solved, x0, atol=1e-9) and torch.allclose(eps_solved, eps, atol=1e-9)


@pytest.mark.parametrize("kind", TARGET_COEFFS)
@pytest.mark.parametrize("schedule", ["scaled_linear", "zero", "flow"])
def test_a_prediction_is_refused_exactly_where_it_does_not_determine_x0(kind: str, schedule: str) -> None:
    zero = schedule == "zero"
    path = Schedule(ScheduleConfig(kind="scaled_linear" if zero else schedule, zero_terminal_snr=zero))
    if kind == "eps" and schedule != "scaled_linear":
        with pytest.raises(UserError, match="use prediction=v or x0"):
            check_parameterization(kind, path)
    else:
        check_parameterization(kind, path)


def test_an_unknown_prediction_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="prediction is 'noise'; it must be one of eps, x0, v, flow"):
        check_parameterization("noise", Schedule(ScheduleConfig()))


def test_the_velocities_are_the_derivatives_of_their_paths() -> None:
    x0, eps = torch.tensor([[0.7]], dtype=torch.float64), torch.tensor([[-1.3]], dtype=torch.float64)
    flow = Schedule(ScheduleConfig(kind="flow"))
    before, after = (flow.diffuse(x0, eps, torch.tensor([t], dtype=torch.float64)) for t in (400.0, 401.0))
    assert torch.allclose((after - before) * 1000, training_target("flow", x0, eps, torch.ones(1), torch.ones(1)))
    angle = torch.tensor([0.6], dtype=torch.float64)  # v is d x / d angle where alpha = cos, sigma = sin
    slope = -angle.sin() * x0 + angle.cos() * eps
    assert torch.allclose(training_target("v", x0, eps, angle.cos(), angle.sin()), slope)
