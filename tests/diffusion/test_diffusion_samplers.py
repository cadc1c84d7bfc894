"""Samplers as functions: what they call, yield and refuse."""

import pytest
import torch
from torch import Tensor

from latentdiff.config import UserError
from latentdiff.diffusion.samplers import SAMPLERS, broadcast_t, sample
from latentdiff.diffusion.schedule import Schedule, ScheduleConfig, append_dims, sampling_timesteps

VP, FLOW = Schedule(ScheduleConfig()), Schedule(ScheduleConfig(kind="flow"))
X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


class ConstantDenoiser:
    """A denoiser that always predicts the same x0, and records its timesteps."""

    def __init__(self, x0: Tensor, schedule: Schedule) -> None:
        self.x0, self.schedule, self.timesteps = x0, schedule, []

    def __call__(self, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        self.timesteps.append(t)
        alpha, sigma = (append_dims(f(broadcast_t(t, x)), x) for f in (self.schedule.alpha, self.schedule.sigma))
        return self.x0, (x - alpha * self.x0) / sigma


def noise() -> Tensor:
    return torch.ones_like(X)


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("schedule", [VP, FLOW], ids=["vp", "flow"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_returns_the_only_image_of_the_data(name: str, schedule: Schedule, steps: int) -> None:
    denoise = ConstantDenoiser(torch.full_like(X, 0.3), schedule)
    predictions = list(sample(name, denoise, X, sampling_timesteps(steps, schedule), schedule, noise=noise))
    assert len(predictions) == steps and torch.allclose(predictions[-1], denoise.x0, atol=1e-6)
    assert len(denoise.timesteps) == {"heun": 2 * steps - 1, "plms": steps + (steps > 1)}.get(name, steps)
    assert all(isinstance(t, float) for t in denoise.timesteps)


def test_a_timestep_is_broadcast_over_the_batch_on_its_device_and_one_per_sample_is_kept() -> None:
    t = broadcast_t(500.0, X)
    assert t.shape == (2,) and t.dtype == X.dtype and broadcast_t(t, X) is t
    assert broadcast_t(500.0, X.to("meta")).is_meta


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    def denoise(x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        return x.tanh(), x - 0.1 * x.tanh()

    *_, both = sample(name, denoise, X, sampling_timesteps(5, VP), VP, noise=noise)
    *_, one = sample(name, denoise, X[1:], sampling_timesteps(5, VP), VP, noise=lambda: noise()[1:])
    assert torch.equal(both[1:], one)


def test_no_gradient_is_kept() -> None:
    weight = torch.ones(1, requires_grad=True)
    *_, result = sample("ddim", lambda x, t: (x * weight, x * weight), X, sampling_timesteps(3, VP), VP)
    assert not result.requires_grad


def test_rising_timesteps_are_refused() -> None:
    with pytest.raises(AssertionError, match="must fall"):
        list(sample("ddim", lambda x, t: (x, x), X, torch.tensor([1.0, 5.0]), VP))


@pytest.mark.parametrize(
    ("name", "eta", "message"),
    [
        ("euler", 0.0, "sampler is 'euler'"),
        ("heun", 0.5, "only ddim"),
        ("ddim", 1.5, "0 to 1"),
        ("ddpm", 0.3, "only ddim"),
    ],
)
def test_an_unknown_sampler_or_a_wrong_eta_is_refused(name: str, eta: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(sample(name, lambda x, t: (x, x), X, sampling_timesteps(2, VP), VP, eta, noise))
