"""The timesteps of sampling, shifted for larger images."""

import math

import pytest
import torch

from latentdiff.config import UserError
from latentdiff.diffusion.schedule import Schedule, ScheduleConfig, sampling_timesteps, shift_timesteps

SCHEDULES = [Schedule(ScheduleConfig(kind=kind)) for kind in ("scaled_linear", "cosine", "flow")]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.config.kind)
def test_shifted_timesteps_start_at_the_noisiest_and_fall(schedule: Schedule) -> None:
    ts = sampling_timesteps(20, schedule)
    for shift in (0.5, 2.0, 4.0):
        shifted = shift_timesteps(ts, schedule, shift)
        assert shifted[0] == ts[0] and (shifted.diff() < 0).all() and shifted.dtype == torch.float64
        assert ((shifted > ts) if shift > 1 else (shifted < ts))[1:].all()
    assert torch.equal(shift_timesteps(ts, schedule, 1.0), ts)


def test_a_shift_of_the_straight_path_multiplies_sigma_by_alpha() -> None:
    schedule, ts = Schedule(ScheduleConfig(kind="flow")), sampling_timesteps(25, Schedule(ScheduleConfig(kind="flow")))
    shifted = shift_timesteps(ts, schedule, 3.0)
    difference = (schedule.log_snr(ts) - schedule.log_snr(shifted))[1:]
    assert torch.allclose(difference, torch.full_like(difference, 2 * math.log(3)), atol=1e-3)
    trained = Schedule(ScheduleConfig(kind="flow", snr_shift=3.0))  # the same shift in training
    assert torch.allclose(schedule.sigma(shifted), trained.sigma(ts), atol=1e-5)


def test_where_the_noise_is_low_a_shift_multiplies_sigma_by_alpha_on_any_schedule() -> None:
    schedule = Schedule(ScheduleConfig())
    ts = torch.tensor([999.0, 20.0, 10.0], dtype=torch.float64)
    ratio = (schedule.log_snr(ts) - schedule.log_snr(shift_timesteps(ts, schedule, 2.0)))[1:]
    assert ratio.numpy() == pytest.approx(2 * math.log(2), rel=0.1)


def test_a_shift_that_is_not_above_0_is_refused() -> None:
    with pytest.raises(UserError, match="shift"):
        shift_timesteps(sampling_timesteps(5, SCHEDULES[0]), SCHEDULES[0], 0.0)
