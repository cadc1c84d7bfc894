"""The weighted mean of scenes: the posterior mean of Gaussian scenes, the nearest scene at low noise."""

import pytest
import torch

from benchmarks.optimal_denoiser import posterior_mean, readable_fraction, scenes
from latentdiff.autoencoder.autoencoder import Autoencoder, AutoencoderConfig
from latentdiff.autoencoder.bottleneck import IdentityConfig
from latentdiff.conditioning.conditioner import Conditioner
from latentdiff.data.shapes.dataset import ShapesConfig
from latentdiff.diffusion.loss import ObjectiveConfig
from latentdiff.diffusion.sampling_config import SamplingConfig
from latentdiff.diffusion.schedule import Schedule, ScheduleConfig
from latentdiff.diffusion.unet import UNet, UNetConfig
from latentdiff.model import LatentDiffusion
from latentdiff.sampling.pipeline import Pipeline


@pytest.mark.parametrize("ratio", [1.0, 3.0])
def test_gaussian_scenes_give_the_gaussian_posterior_mean(ratio: float) -> None:
    train = torch.randn(200_000, 1, 1, 2, generator=torch.Generator().manual_seed(0))
    x = torch.tensor([[1.0, -0.5], [-2.0, 0.3]]).reshape(2, 1, 1, 2)
    weights, mean = posterior_mean(train, x, ratio)
    assert torch.allclose(weights.sum(1), torch.ones(2), atol=1e-4)
    assert torch.allclose(mean, x / (1 + ratio**2), atol=0.02)


def test_at_low_noise_it_is_the_nearest_scene() -> None:
    train = torch.randn(50, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    weights, mean = posterior_mean(train, train[:5] + 0.01, 0.05)
    assert weights.argmax(1).tolist() == list(range(5)) and torch.allclose(mean, train[:5], atol=1e-4)


@pytest.mark.parametrize("ratio", [1000.0, 1.0, 0.01])
@pytest.mark.parametrize("exact", [True, False])
def test_scenes_are_readable_if_the_network_predicts_them(monkeypatch, ratio: float, exact: bool) -> None:
    z = scenes(ShapesConfig(max_objects=1), "test", 3)
    unet = UNet(UNetConfig(8, (1,), 1, (), norm_groups=4), 3, 3)
    monkeypatch.setattr(unet, "forward", lambda x, t, cond: z if exact else z.mean((2, 3), True).expand_as(z))
    model = LatentDiffusion(Conditioner([]), unet, Schedule(ScheduleConfig()), ObjectiveConfig(prediction="x0"))
    model.sampling = SamplingConfig(steps=4, guidance_scale=1.0)
    autoencoder = Autoencoder(AutoencoderConfig(channel_mult=(), z_channels=3, bottleneck=IdentityConfig()))
    pipeline = Pipeline(model, autoencoder, tuple(z.shape[2:]))
    assert readable_fraction(pipeline, z, ratio) == float(exact)
