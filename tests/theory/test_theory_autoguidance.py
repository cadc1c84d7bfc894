"""Classifier-free guidance, autoguidance and guidance intervals: identities, and Gaussian data."""

import pytest
import torch
from test_theory_samplers import alpha_sigma, gaussian, quantiles
from torch import Tensor

from latentdiff.diffusion.guidance import autoguidance, classifier_free, limit_interval, quantize_x0
from latentdiff.diffusion.samplers import Denoise, sample
from latentdiff.diffusion.schedule import Schedule, ScheduleConfig, sampling_timesteps

SCHEDULE = Schedule(ScheduleConfig(kind="flow"))
X = torch.randn(5, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def at(t: float) -> Tensor:
    return torch.full((5,), t, dtype=torch.float64)


class CountingDenoiser:
    """A denoiser that counts the samples of its calls."""

    def __init__(self, denoise: Denoise) -> None:
        self.denoise, self.samples = denoise, 0

    def __call__(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        self.samples += len(x)
        return self.denoise(x, t)


def test_autoguidance_equals_classifier_free_guidance_if_the_weak_model_is_the_unconditional_one() -> None:
    means = torch.tensor([0.0] * 5 + [1.0] * 5, dtype=torch.float64)[:, None, None, None]
    both, weak, main = gaussian(SCHEDULE, means, 0.6), gaussian(SCHEDULE, 0.0, 0.6), gaussian(SCHEDULE, 1.0, 0.6)
    for t in (100.0, 700.0):
        for scale, rescale in ((3.0, 0.0), (2.0, 0.7)):
            a = classifier_free(both, scale, rescale, SCHEDULE)(X, at(t))
            b = autoguidance(main, weak, scale, rescale, SCHEDULE)(X, at(t))
            assert all(torch.allclose(x, y, atol=1e-12) for x, y in zip(a, b))


def test_autoguidance_by_the_model_itself_changes_nothing_and_by_a_blurred_one_sharpens() -> None:
    """Guided by a Gaussian of the same mean and a larger variance, the variance shrinks and the mean stays."""
    main, x = gaussian(SCHEDULE, 0.7, 0.5), quantiles(SCHEDULE, 999, 0.7, 0.5)
    ts, ends = sampling_timesteps(60, SCHEDULE, "quadratic"), {}
    for name, weak in (("itself", main), ("weak", gaussian(SCHEDULE, 0.7, 0.8)), (None, None)):
        denoise = main if weak is None else autoguidance(main, weak, 2.0, 0.0, SCHEDULE)
        *_, ends[name] = sample("heun", denoise, x, ts, SCHEDULE)
    assert torch.allclose(ends["itself"], ends[None])
    assert ends["weak"].std() < 0.9 * ends[None].std()
    assert ends["weak"].mean().item() == pytest.approx(0.7, abs=1e-2)


def test_guidance_applies_inside_the_interval_only_and_costs_nothing_outside() -> None:
    plain, other = CountingDenoiser(gaussian(SCHEDULE, 1.0)), gaussian(SCHEDULE, 0.0)
    guided = autoguidance(plain, CountingDenoiser(other), 3.0, 0.0, SCHEDULE)
    denoise = limit_interval(guided, plain, (0.2, 0.8), SCHEDULE)
    for t in (100.0, 198.0, 800.0, 999.0):  # sigma / (alpha + sigma) is (t + 1) / 1000
        assert all(torch.equal(denoise(X, same_t)[0], plain(X, t)[0]) for same_t in (t, at(t)))
    for t in (200.0, 500.0, 799.0):
        assert all(torch.equal(denoise(X, same_t)[0], guided(X, t)[0]) for same_t in (t, at(t)))
    assert limit_interval(guided, plain, (0.0, 1.0), SCHEDULE) is guided
    both = CountingDenoiser(gaussian(SCHEDULE, torch.zeros(10, 1, 1, 1).double()))
    denoise = limit_interval(classifier_free(both, 3.0, 0.0, SCHEDULE), plain, (0.25, 0.75), SCHEDULE)
    plain.samples = 0
    list(sample("ddim", denoise, X, sampling_timesteps(10, SCHEDULE), SCHEDULE))
    assert both.samples == 2 * 5 * 5 and plain.samples == 5 * 5  # five of ten timesteps are inside


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun", "plms"])
def test_the_interval_is_decided_without_a_device_sync(sampler: str) -> None:
    """Meta tensors have no values: reading one would fail."""
    calls = CountingDenoiser(lambda x, t: (x, x)), CountingDenoiser(lambda x, t: (x, x))
    denoise = limit_interval(*calls, (0.25, 0.75), SCHEDULE)
    list(sample(sampler, denoise, X, sampling_timesteps(10, SCHEDULE), SCHEDULE))
    counts = [counting.samples for counting in calls]
    list(sample(sampler, denoise, X.to("meta"), sampling_timesteps(10, SCHEDULE), SCHEDULE))
    assert [counting.samples for counting in calls] == [2 * n for n in counts] and min(counts) >= 5 * 5


def test_with_a_timestep_per_sample_each_sample_is_guided_as_it_would_be_alone() -> None:
    """As in distillation."""
    plain = gaussian(SCHEDULE, 1.0)
    guided = autoguidance(plain, gaussian(SCHEDULE, 0.0), 3.0, 0.0, SCHEDULE)
    denoise = limit_interval(guided, plain, (0.2, 0.8), SCHEDULE)
    t = torch.tensor([900.0, 100.0, 500.0, 300.0, 850.0]).double()
    for output, inside, outside in zip(denoise(X, t), guided(X, t), plain(X, t)):
        assert torch.equal(output[2:4], inside[2:4]) and torch.equal(output[[0, 1, 4]], outside[[0, 1, 4]])


def test_the_guidance_of_two_adjacent_intervals_sums_to_the_whole() -> None:
    plain = gaussian(SCHEDULE, 1.0)
    guided = autoguidance(plain, gaussian(SCHEDULE, 0.0), 3.0, 0.0, SCHEDULE)
    low, high = (limit_interval(guided, plain, ends, SCHEDULE) for ends in ((0.0, 0.5), (0.50001, 1.0)))
    for t in (10.0, 499.0, 500.0, 998.0):
        gains = [d(X, at(t))[0] - plain(X, at(t))[0] for d in (low, high)]
        assert torch.allclose(sum(gains), guided(X, at(t))[0] - plain(X, at(t))[0], atol=1e-12)


def test_quantization_changes_x0_and_keeps_eps() -> None:
    """As in the original release."""
    denoise = quantize_x0(gaussian(SCHEDULE), lambda x: x.round())
    (x0, eps), (plain, noise) = denoise(X, at(300.0)), gaussian(SCHEDULE)(X, at(300.0))
    assert torch.equal(x0, plain.round()) and torch.equal(eps, noise)
    *_, end = sample("ddim", denoise, X, sampling_timesteps(5, SCHEDULE), SCHEDULE)
    assert torch.equal(end, end.round())


def test_rescaling_keeps_x_with_a_scale_per_sample() -> None:
    weak, main = gaussian(SCHEDULE, 0.0, 0.4), gaussian(SCHEDULE, 1.0, 0.4)
    scales = torch.tensor([1.0, 2.0, 3.0, 0.0, -1.0])
    x0, eps = autoguidance(main, weak, scales, 0.5, SCHEDULE)(X, at(400.0))
    alpha, sigma = alpha_sigma(SCHEDULE, 400.0, X)
    assert torch.allclose(alpha * x0 + sigma * eps, X, atol=1e-12)
    for i, scale in enumerate(scales.tolist()):
        alone, _ = autoguidance(main, weak, scale, 0.5, SCHEDULE)(X, at(400.0))
        assert torch.allclose(x0[i], alone[i])
    assert torch.allclose(x0[0], main(X, at(400.0))[0][0])  # with scale 1
