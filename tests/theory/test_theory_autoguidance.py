"""Guidance away from something worse: identities and Gaussians."""

import pytest
import torch
from test_theory_samplers import gaussian, spread
from torch import Tensor

from latentdiff.diffusion.guidance import autoguidance, classifier_free, quantize_x0, limit_interval
from latentdiff.diffusion.samplers import Denoise, sample
from latentdiff.diffusion.schedule import Schedule, ScheduleConfig, append_dims, sampling_timesteps

SCHEDULE = Schedule(ScheduleConfig(kind="flow"))
X = torch.randn(5, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def at(t: float) -> Tensor:
    return torch.full((5,), t, dtype=torch.float64)


class Counted:
    """A denoiser that counts how many samples it was asked for."""

    def __init__(self, denoise: Denoise) -> None:
        self.denoise, self.samples = denoise, 0

    def __call__(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        self.samples += len(x)
        return self.denoise(x, t)


def test_autoguidance_is_classifier_free_guidance_where_the_worse_model_is_the_one_without_condition() -> None:
    means = torch.tensor([0.0] * 5 + [1.0] * 5, dtype=torch.float64)[:, None, None, None]
    both, bad, good = gaussian(SCHEDULE, means, 0.6), gaussian(SCHEDULE, 0.0, 0.6), gaussian(SCHEDULE, 1.0, 0.6)
    for t in (100.0, 700.0):
        for scale, rescale in ((3.0, 0.0), (2.0, 0.7)):
            a = classifier_free(both, scale, rescale, SCHEDULE)(X, at(t))
            b = autoguidance(good, bad, scale, rescale, SCHEDULE)(X, at(t))
            assert all(torch.allclose(x, y, atol=1e-12) for x, y in zip(a, b))


def test_autoguidance_by_itself_changes_nothing_and_by_a_blurred_self_sharpens() -> None:
    """Away from a Gaussian of the same mean and a larger spread, the spread shrinks and the mean stays."""
    good, x = gaussian(SCHEDULE, 0.7, 0.5), spread(SCHEDULE, 999, 0.7, 0.5)
    ts, ends = sampling_timesteps(60, SCHEDULE, "quadratic"), {}
    for name, bad in (("itself", good), ("worse", gaussian(SCHEDULE, 0.7, 0.8)), (None, None)):
        denoise = good if bad is None else autoguidance(good, bad, 2.0, 0.0, SCHEDULE)
        *_, ends[name] = sample("heun", denoise, x, ts, SCHEDULE)
    assert torch.allclose(ends["itself"], ends[None])
    assert ends["worse"].std() < 0.9 * ends[None].std()
    assert ends["worse"].mean().item() == pytest.approx(0.7, abs=1e-2)


def test_within_the_interval_is_guidance_and_outside_is_none_at_half_the_cost() -> None:
    plain, other = Counted(gaussian(SCHEDULE, 1.0)), gaussian(SCHEDULE, 0.0)
    guided = autoguidance(plain, Counted(other), 3.0, 0.0, SCHEDULE)
    denoise = limit_interval(guided, plain, (0.2, 0.8), SCHEDULE)
    for t in (100.0, 198.0, 800.0, 999.0):  # the share of noise is (t + 1) / 1000
        assert torch.equal(denoise(X, at(t))[0], plain(X, at(t))[0])
    for t in (200.0, 500.0, 799.0):
        assert torch.equal(denoise(X, at(t))[0], guided(X, at(t))[0])
    assert limit_interval(guided, plain, (0.0, 1.0), SCHEDULE) is guided
    both = Counted(gaussian(SCHEDULE, torch.zeros(10, 1, 1, 1).double()))
    denoise = limit_interval(classifier_free(both, 3.0, 0.0, SCHEDULE), plain, (0.25, 0.75), SCHEDULE)
    plain.samples = 0
    list(sample("ddim", denoise, X, sampling_timesteps(10, SCHEDULE), SCHEDULE))
    assert both.samples == 2 * 5 * 5 and plain.samples == 5 * 5  # of 0.1 to 1, five are inside


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun", "plms"])
def test_the_interval_is_decided_by_the_grid_without_waiting_for_the_device(sampler: str) -> None:
    """Meta tensors hold no numbers: a sampler that waits for one fails."""
    calls = Counted(lambda x, t: (x, x)), Counted(lambda x, t: (x, x))
    denoise = limit_interval(*calls, (0.25, 0.75), SCHEDULE)
    list(sample(sampler, denoise, X, sampling_timesteps(10, SCHEDULE), SCHEDULE))
    wanted = [counted.samples for counted in calls]
    list(sample(sampler, denoise, X.to("meta"), sampling_timesteps(10, SCHEDULE), SCHEDULE))
    assert [counted.samples for counted in calls] == [2 * n for n in wanted] and min(wanted) >= 5 * 5


def test_samples_at_different_t_are_each_guided_as_they_would_be_alone() -> None:
    """As in distillation, where every sample has a t of its own."""
    plain = gaussian(SCHEDULE, 1.0)
    guided = autoguidance(plain, gaussian(SCHEDULE, 0.0), 3.0, 0.0, SCHEDULE)
    denoise, t = limit_interval(guided, plain, (0.2, 0.8), SCHEDULE), torch.tensor([900.0, 100.0, 500.0, 300.0, 850.0]).double()
    for got, a, b in zip(denoise(X, t), guided(X, t), plain(X, t)):
        assert torch.equal(got[2:4], a[2:4]) and torch.equal(got[[0, 1, 4]], b[[0, 1, 4]])


def test_two_intervals_side_by_side_are_the_whole() -> None:
    plain = gaussian(SCHEDULE, 1.0)
    guided = autoguidance(plain, gaussian(SCHEDULE, 0.0), 3.0, 0.0, SCHEDULE)
    low, high = (limit_interval(guided, plain, ends, SCHEDULE) for ends in ((0.0, 0.5), (0.50001, 1.0)))
    for t in (10.0, 499.0, 500.0, 998.0):
        gains = [d(X, at(t))[0] - plain(X, at(t))[0] for d in (low, high)]
        assert torch.allclose(sum(gains), guided(X, at(t))[0] - plain(X, at(t))[0], atol=1e-12)


def test_quantised_guesses_are_codes_and_keep_the_noise() -> None:
    """As the original: x0 is put on the codes, eps is as predicted."""
    denoise = quantize_x0(gaussian(SCHEDULE), lambda x: x.round())
    (x0, eps), (plain, noise) = denoise(X, at(300.0)), gaussian(SCHEDULE)(X, at(300.0))
    assert torch.equal(x0, plain.round()) and torch.equal(eps, noise)
    *_, end = sample("ddim", denoise, X, sampling_timesteps(5, SCHEDULE), SCHEDULE)
    assert torch.equal(end, end.round())


def test_rescaling_keeps_x_where_it_is_with_a_scale_for_each_sample() -> None:
    bad, good = gaussian(SCHEDULE, 0.0, 0.4), gaussian(SCHEDULE, 1.0, 0.4)
    scales = torch.tensor([1.0, 2.0, 3.0, 0.0, -1.0])
    x0, eps = autoguidance(good, bad, scales, 0.5, SCHEDULE)(X, at(400.0))
    alpha, sigma = (append_dims(f(at(400.0)), X) for f in (SCHEDULE.alpha, SCHEDULE.sigma))
    assert torch.allclose(alpha * x0 + sigma * eps, X, atol=1e-12)
    for i, scale in enumerate(scales.tolist()):
        alone, _ = autoguidance(good, bad, scale, 0.5, SCHEDULE)(X, at(400.0))
        assert torch.allclose(x0[i], alone[i])
    assert torch.allclose(x0[0], good(X, at(400.0))[0][0])  # scale 1 is the good one
