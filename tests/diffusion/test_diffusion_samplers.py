"""Samplers as functions: what they call, yield and refuse."""

import pytest
import torch
from torch import Tensor

from latentdiff.config import UserError
from latentdiff.diffusion.samplers import SAMPLERS, ddim, sample
from latentdiff.diffusion.schedule import Schedule, ScheduleConfig, timesteps

VP, FLOW = Schedule(ScheduleConfig()), Schedule(ScheduleConfig(kind="flow"))
X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


class Recorder:
    """A denoise that knows the answer and remembers what it was asked."""

    def __init__(self, answer: Tensor, schedule: Schedule) -> None:
        self.answer, self.schedule, self.asked = answer, schedule, []

    def __call__(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        self.asked.append(t)
        alpha, sigma = self.schedule.alpha(t)[:, None, None, None], self.schedule.sigma(t)[:, None, None, None]
        return self.answer, (x - alpha * self.answer) / sigma


def noise() -> Tensor:
    return torch.ones_like(X)


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("schedule", [VP, FLOW], ids=["vp", "flow"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_finds_the_only_image_there_is(name: str, schedule: Schedule, steps: int) -> None:
    denoise = Recorder(torch.full_like(X, 0.3), schedule)
    guesses = list(sample(name, denoise, X, timesteps(steps, schedule), schedule, noise=noise))
    assert len(guesses) == steps and torch.allclose(guesses[-1], denoise.answer, atol=1e-6)
    assert len(denoise.asked) == {"heun": 2 * steps - 1, "plms": steps + (steps > 1)}.get(name, steps)
    assert all(t.shape == (2,) and t.dtype == X.dtype for t in denoise.asked)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    def denoise(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return x.tanh(), x - 0.1 * x.tanh()

    *_, both = sample(name, denoise, X, timesteps(5, VP), VP, noise=noise)
    *_, one = sample(name, denoise, X[1:], timesteps(5, VP), VP, noise=lambda: noise()[1:])
    assert torch.equal(both[1:], one)


def test_no_gradient_is_kept() -> None:
    weight = torch.ones(1, requires_grad=True)
    *_, result = sample("ddim", lambda x, t: (x * weight, x * weight), X, timesteps(3, VP), VP)
    assert not result.requires_grad


def test_timesteps_that_rise_are_refused() -> None:
    with pytest.raises(AssertionError, match="must fall"):
        list(ddim(lambda x, t: (x, x), X, torch.tensor([1.0, 5.0]), VP))


@pytest.mark.parametrize(
    ("name", "eta", "message"),
    [
        ("euler", 0.0, "sampler is 'euler'"),
        ("heun", 0.5, "only ddim"),
        ("ddim", 1.5, "0 to 1"),
        ("ddpm", 0.3, "only ddim"),
    ],
)
def test_a_wrong_name_or_eta_is_refused(name: str, eta: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(sample(name, lambda x, t: (x, x), X, timesteps(2, VP), VP, eta, noise))
