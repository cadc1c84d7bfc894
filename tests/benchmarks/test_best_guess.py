"""The weighed mean of scenes: the posterior mean where scenes are Gaussian, the nearest scene at low noise."""

import pytest
import torch

from benchmarks.best_guess import weighed


@pytest.mark.parametrize("ratio", [1.0, 3.0])
def test_scenes_that_are_gaussian_give_the_gaussian_posterior_mean(ratio: float) -> None:
    known = torch.randn(200_000, 1, 1, 2, generator=torch.Generator().manual_seed(0))
    x = torch.tensor([[1.0, -0.5], [-2.0, 0.3]]).reshape(2, 1, 1, 2)
    weights, mean = weighed(known, x, ratio)
    assert torch.allclose(weights.sum(1), torch.ones(2), atol=1e-4)
    assert torch.allclose(mean, x / (1 + ratio**2), atol=0.02)


def test_where_noise_is_low_it_is_the_nearest_scene() -> None:
    known = torch.randn(50, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    weights, mean = weighed(known, known[:5] + 0.01, 0.05)
    assert weights.argmax(1).tolist() == list(range(5)) and torch.allclose(mean, known[:5], atol=1e-4)
