"""The schedule as an object: precisions, devices, timesteps, messages."""

import copy

import pytest
import torch

from latentdiff.config import UserError
from latentdiff.diffusion.schedule import SPACINGS, Schedule, ScheduleConfig, shifted, timesteps

VP, FLOW = Schedule(ScheduleConfig()), Schedule(ScheduleConfig(kind="flow"))
ZERO = Schedule(ScheduleConfig(zero_terminal_snr=True))


@pytest.mark.parametrize("kind", ["scaled_linear", "flow"])
def test_numbers_come_in_the_precision_of_t(kind: str) -> None:
    schedule = Schedule(ScheduleConfig(kind=kind))
    for dtype, want in [(torch.float64,) * 2, (torch.float32,) * 2, (torch.int64, torch.float32)]:
        t = torch.tensor([0, 500, 998], dtype=dtype)
        for number in (schedule.alpha(t), schedule.sigma(t), schedule.log_snr(t)):
            assert number.dtype == want and number.shape == (3,)
    x = torch.ones(3, 2, 4, 4, dtype=torch.float64)
    assert schedule.diffuse(x, x, torch.tensor([0, 500, 998])).dtype == torch.float64


def test_a_schedule_made_on_the_meta_device_still_has_its_numbers() -> None:
    with torch.device("meta"):
        schedule = Schedule(ScheduleConfig())
    assert schedule.alphas_cumprod.device.type == "cpu" and schedule.alphas_cumprod.shape == (1000,)
    t = torch.tensor([3.5])
    assert torch.equal(copy.deepcopy(schedule).alpha(t), Schedule(ScheduleConfig()).alpha(t))


def test_a_flow_has_no_alphas_cumprod() -> None:
    with pytest.raises(AssertionError, match="alpha"):
        _ = Schedule(ScheduleConfig(kind="flow")).alphas_cumprod


@pytest.mark.parametrize("schedule", [VP, FLOW, ZERO], ids=["vp", "flow", "zero"])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 20, 1000])
def test_timesteps_fall_and_stay_inside(spacing: str, steps: int, schedule: Schedule) -> None:
    if spacing == "uniform" and steps == 1000:
        pytest.skip("the original's grid leaves the schedule there; parity tests the message")
    ts = timesteps(steps, schedule, spacing)
    assert len(ts) == steps and (ts.diff() < 0).all() and ts.min() >= 0 and ts.max() <= 999
    assert spacing == "uniform" or ts[0] == 999
    assert spacing in ("uniform", "trailing") or steps == 1 or ts[-1] == 0


@pytest.mark.parametrize("schedule", [VP, FLOW, ZERO], ids=["vp", "flow", "zero"])
def test_strides_are_equal_where_the_spacing_says_so(schedule: Schedule) -> None:
    noise = {spacing: -schedule.log_snr(timesteps(20, schedule, spacing)) / 2 for spacing in ("log_snr", "karras")}
    for stretched in (noise["log_snr"], torch.exp(noise["karras"] / 7)):
        strides = stretched[2:-2].diff()  # at the ends the table's own strides show
        assert torch.allclose(strides, strides.mean(), rtol=0.05)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: timesteps(0, VP), "steps is 0"),
        (lambda: timesteps(1001, VP), "1 to 1000"),
        (lambda: timesteps(10, VP, "even"), "spacing is 'even'"),
        (lambda: Schedule(ScheduleConfig(kind="lin")), "schedule.kind is 'lin'"),
        (lambda: Schedule(ScheduleConfig(snr_shift=0.0)), "schedule.snr_shift is 0.0"),
        (lambda: shifted(timesteps(20, FLOW), FLOW, 1e9), "no room for 20 steps"),
    ],
)
def test_what_cannot_be_is_refused_by_name(call, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()
