"""The schedule: dtypes, devices, timesteps of sampling, error messages."""

import copy

import pytest
import torch

from latentdiff.config import UserError
from latentdiff.diffusion.schedule import SPACINGS, Schedule, ScheduleConfig, sampling_timesteps, shift_timesteps

VP, FLOW = Schedule(ScheduleConfig()), Schedule(ScheduleConfig(kind="flow"))
ZERO = Schedule(ScheduleConfig(zero_terminal_snr=True))


@pytest.mark.parametrize("kind", ["scaled_linear", "flow"])
def test_values_have_the_dtype_of_t(kind: str) -> None:
    schedule = Schedule(ScheduleConfig(kind=kind))
    for dtype, expected in [(torch.float64,) * 2, (torch.float32,) * 2, (torch.int64, torch.float32)]:
        t = torch.tensor([0, 500, 998], dtype=dtype)
        for value in (schedule.alpha(t), schedule.sigma(t), schedule.log_snr(t)):
            assert value.dtype == expected and value.shape == (3,)
    x = torch.ones(3, 2, 4, 4, dtype=torch.float64)
    assert schedule.diffuse(x, x, torch.tensor([0, 500, 998])).dtype == torch.float64


def test_a_schedule_created_under_the_meta_device_has_its_values_on_the_cpu() -> None:
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
def test_timesteps_fall_and_stay_in_range(spacing: str, steps: int, schedule: Schedule) -> None:
    if spacing == "uniform" and steps == 1000:
        pytest.skip("the original release's grid exceeds the schedule; the message is tested in tests/parity")
    ts = sampling_timesteps(steps, schedule, spacing)
    assert len(ts) == steps and (ts.diff() < 0).all() and ts.min() >= 0 and ts.max() <= 999
    assert spacing == "uniform" or ts[0] == 999
    assert spacing in ("uniform", "trailing") or steps == 1 or ts[-1] == 0


@pytest.mark.parametrize("schedule", [VP, FLOW, ZERO], ids=["vp", "flow", "zero"])
def test_strides_of_log_snr_and_karras_are_equal_in_their_quantity(schedule: Schedule) -> None:
    log_noise = [-schedule.log_snr(sampling_timesteps(20, schedule, name)) / 2 for name in ("log_snr", "karras")]
    for quantity in (log_noise[0], torch.exp(log_noise[1] / 7)):
        strides = quantity[2:-2].diff()  # at the ends, limited by the resolution of the table
        assert torch.allclose(strides, strides.mean(), rtol=0.05)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sampling_timesteps(0, VP), "steps is 0"),
        (lambda: sampling_timesteps(1001, VP), "1 to 1000"),
        (lambda: sampling_timesteps(10, VP, "even"), "spacing is 'even'"),
        (lambda: Schedule(ScheduleConfig(kind="lin")), "schedule.kind is 'lin'"),
        (lambda: Schedule(ScheduleConfig(snr_shift=0.0)), "schedule.snr_shift is 0.0"),
        (lambda: shift_timesteps(sampling_timesteps(20, FLOW), FLOW, 1e9), "no room for 20 steps"),
    ],
)
def test_invalid_settings_are_refused_by_name(call, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()
