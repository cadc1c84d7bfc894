"""Tiled sampling, image-to-image sampling and wrappers of the denoiser."""

from dataclasses import replace

import pytest
import torch

from latentdiff import rng
from latentdiff.conditioning.conditioner import Conditioner
from latentdiff.conditioning.label import LabelCondition, LabelConfig
from latentdiff.config import UserError
from latentdiff.diffusion import guidance
from latentdiff.diffusion.guidance import blend_known
from latentdiff.diffusion.loss import ObjectiveConfig
from latentdiff.diffusion.sampling_config import SamplingConfig
from latentdiff.diffusion.schedule import Schedule, ScheduleConfig
from latentdiff.diffusion.unet import UNet, UNetConfig
from latentdiff.model import LatentDiffusion
from latentdiff.sampling.pipeline import Pipeline, sample_latents

TINY = UNetConfig(channels=8, channel_mult=(1,), num_res_blocks=1, attention_levels=(0,), num_heads=2, norm_groups=4)
SHAPE = (2, 8, 8)


def model():
    """Latents [2, h, w], a label of five classes."""
    torch.manual_seed(0)
    conditioner = Conditioner([LabelCondition(LabelConfig(classes=5, dim=8))])
    network = LatentDiffusion(
        conditioner, UNet(TINY, 2, 2, 8), Schedule(ScheduleConfig()), ObjectiveConfig(prediction="x0")
    )
    for p in network.parameters():  # zero-initialised layers would hide everything behind them
        torch.nn.init.normal_(p, std=0.1)
    return network.eval()


def sampled(**options):
    """options: fields of SamplingConfig, and init, strength, wrap."""
    extra = {name: options.pop(name) for name in ("init", "strength", "wrap") if name in options}
    settings = replace(SamplingConfig(steps=8, guidance_scale=1.0), **options)
    return list(sample_latents(model(), {"label": torch.tensor([1])}, [3], SHAPE, settings, **extra))


def test_tiled_sampling_differs_from_untiled_unless_one_tile_covers_the_latent():
    plain, one, four = (sampled(tile_size=tile, guidance_scale=2.0)[-1] for tile in (0, 8, 4))
    assert torch.allclose(plain, one, atol=1e-5) and not torch.allclose(plain, four, atol=1e-3)


@pytest.mark.parametrize("wrong", [{"tile_size": -1}, {"tile_overlap": 1.0}, {"timestep_shift": 0.0}])
def test_tiles_and_shifts_out_of_range_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong)).removeprefix("timestep_")):
        sampled(**wrong)


def test_image_to_image_keeps_less_of_the_image_at_higher_strength_and_nothing_at_1():
    init, plain = rng.normal(torch.tensor([7]), SHAPE), sampled()[-1]
    assert torch.equal(sampled(init=init, strength=1.0)[-1], plain)
    results = [sampled(init=init, strength=s) for s in (0.01, 0.25, 0.5, 0.9)]
    assert [len(predictions) for predictions in results] == [1, 2, 4, 7]
    ends = [(predictions[-1] - plain).norm().item() for predictions in results]
    assert ends == sorted(ends, reverse=True) and ends[0] > 2 * ends[-1]


def test_image_to_image_starts_from_the_noised_image():
    network, init = model(), rng.normal(torch.tensor([7]), SHAPE)
    seen = []
    network.unet.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    settings = SamplingConfig(steps=8, guidance_scale=1.0)
    list(sample_latents(network, {"label": torch.tensor([1])}, [3], SHAPE, settings, init=init, strength=0.5))
    x, t = seen[0]
    assert len(seen) == 4 and t.item() == network.timesteps(settings)[4]
    eps = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(x, network.schedule.diffuse(init, eps[None], t), atol=1e-6)


@pytest.mark.parametrize("strength", [0.0, 1.5])
def test_a_strength_out_of_range_is_refused(strength):
    with pytest.raises(UserError, match="strength"):
        sampled(init=torch.zeros(1, *SHAPE), strength=strength)


def test_known_pixels_are_blended_in_by_a_wrapper_of_the_denoiser():
    known, mask = rng.normal(torch.tensor([7]), SHAPE), torch.zeros(1, 1, *SHAPE[1:])
    mask[..., :4] = 1
    schedule, seen = Schedule(ScheduleConfig()), []

    def wrap(denoise, noise):
        def recorded(x, t):
            seen.append((x, t))
            return denoise(x, t)

        return blend_known(recorded, known, mask, noise, schedule)

    sampled(wrap=wrap, sampler="ddim")
    x, t = seen[-1]
    alpha, sigma = (f(torch.tensor(t)) for f in (schedule.alpha, schedule.sigma))
    assert ((x - alpha * known) / sigma)[..., :4].std().item() == pytest.approx(1.0, abs=0.2)  # noise alone
    assert ((x - alpha * known) / sigma)[..., 4:].std() > 1.5


class Subsample(torch.nn.Module):
    """A stand-in for an autoencoder of factor 2."""

    factor = 2

    def encode(self, x):
        return x[:, :, ::2, ::2]


@pytest.mark.parametrize("white", [1, 255])
def test_the_masked_region_is_where_the_mask_is_not_zero(white, monkeypatch):
    """Masks are often files of 0 and 255."""
    pipeline, masks = Pipeline(model(), Subsample(), (8, 8)), []
    monkeypatch.setattr(guidance, "blend_known", lambda denoise, z, known, *rest: masks.append(known))
    mask = torch.zeros(1, 8, 8, dtype=torch.uint8)
    mask[:, :, 4:] = white
    pipeline.blend_known_pixels({"image": torch.zeros(1, 8, 8, 3, dtype=torch.uint8), "mask": mask})(None, None)
    assert masks[0].tolist() == [[[[1, 1, 0, 0]] * 4]]
