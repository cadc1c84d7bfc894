"""Drawing larger than in training, over a picture, and with more around the denoiser."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from latentdiff import rng
from latentdiff.conditioning.conditioner import Conditioner
from latentdiff.conditioning.label import LabelCondition, LabelConfig
from latentdiff.config import UserError
from latentdiff.diffusion import guidance
from latentdiff.diffusion.guidance import blend_known
from latentdiff.diffusion.schedule import Schedule, ScheduleConfig
from latentdiff.diffusion.unet import UNet, UNetConfig
from latentdiff.model import LatentDiffusion, ObjectiveConfig, SamplingConfig

TINY = UNetConfig(channels=8, channel_mult=(1,), num_res_blocks=1, attention_levels=(0,), num_heads=2, norm_groups=4)
SHAPE = (2, 8, 8)


def model():
    """Latents [2, h, w], a label of five classes."""
    torch.manual_seed(0)
    conditioner = Conditioner([LabelCondition(LabelConfig(classes=5, dim=8))])
    made = LatentDiffusion(
        conditioner, UNet(TINY, 2, 2, 8), Schedule(ScheduleConfig()), ObjectiveConfig(prediction="x0")
    )
    for p in made.parameters():  # so that zero-initialised layers pass something on
        torch.nn.init.normal_(p, std=0.1)
    return made.eval()


def drawn(**given):
    """given: fields of Sampling, and start, strength, around."""
    extra = {name: given.pop(name) for name in ("start", "strength", "around") if name in given}
    settings = replace(SamplingConfig(steps=8, guidance_scale=1.0), **given)
    return list(model().draw({"label": torch.tensor([1])}, [3], SHAPE, settings, **extra))


def test_drawing_in_tiles_depends_on_them_and_one_tile_is_none():
    plain, one, four = (drawn(tile=tile, guidance_scale=2.0)[-1] for tile in (0, 8, 4))
    assert torch.allclose(plain, one, atol=1e-5) and not torch.allclose(plain, four, atol=1e-3)


@pytest.mark.parametrize("wrong", [{"tile": -1}, {"overlap": 1.0}, {"shift": 0.0}])
def test_tiles_and_shifts_that_cannot_be_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        drawn(**wrong)


def test_drawing_over_a_picture_keeps_less_of_it_the_stronger_and_nothing_at_strength_1():
    start, plain = rng.normal(torch.tensor([7]), SHAPE), drawn()[-1]
    assert torch.equal(drawn(start=start, strength=1.0)[-1], plain)
    made = [drawn(start=start, strength=s) for s in (0.01, 0.25, 0.5, 0.9)]
    assert [len(guesses) for guesses in made] == [1, 2, 4, 7]
    ends = [(guesses[-1] - plain).norm().item() for guesses in made]
    assert ends == sorted(ends, reverse=True) and ends[0] > 2 * ends[-1]


def test_drawing_over_a_picture_begins_at_its_noised_self():
    made, start = model(), rng.normal(torch.tensor([7]), SHAPE)
    seen = []
    made.unet.register_forward_pre_hook(lambda module, given: seen.append(given))
    settings = SamplingConfig(steps=8, guidance_scale=1.0)
    list(made.draw({"label": torch.tensor([1])}, [3], SHAPE, settings, start=start, strength=0.5))
    x, t = seen[0]
    assert len(seen) == 4 and t.item() == made.grid(settings)[4]
    eps = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(x, made.schedule.diffuse(start, eps[None], t), atol=1e-6)


@pytest.mark.parametrize("strength", [0.0, 1.5])
def test_a_strength_out_of_range_is_refused(strength):
    with pytest.raises(UserError, match="strength"):
        drawn(start=torch.zeros(1, *SHAPE), strength=strength)


def test_known_pixels_can_be_put_around_the_denoiser():
    known, mask = rng.normal(torch.tensor([7]), SHAPE), torch.zeros(1, 1, *SHAPE[1:])
    mask[..., :4] = 1
    schedule, seen = Schedule(ScheduleConfig()), []

    def around(denoise, noise):
        def watched(x, t):
            seen.append((x, t))
            return denoise(x, t)

        return blend_known(watched, known, mask, noise, schedule)

    drawn(around=around, sampler="ddim")
    x, t = seen[-1]
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    assert ((x - alpha * known) / sigma)[..., :4].std().item() == pytest.approx(1.0, abs=0.2)  # noise and no more
    assert ((x - alpha * known) / sigma)[..., 4:].std() > 1.5


@pytest.mark.parametrize("white", [1, 255])
def test_a_mask_is_where_it_is_not_zero(white, monkeypatch):
    """Masks are often files of 0 and 255."""
    made, masks = model(), []
    made.autoencoder = SimpleNamespace(encode=lambda x: x[:, :, ::2, ::2], factor=2)
    monkeypatch.setattr(guidance, "blend_known", lambda denoise, z, known, *rest: masks.append(known))
    mask = torch.zeros(1, 8, 8, dtype=torch.uint8)
    mask[:, :, 4:] = white
    made.known_pixels({"image": torch.zeros(1, 8, 8, 3, dtype=torch.uint8), "mask": mask})(None, None)
    assert masks[0].tolist() == [[[[1, 1, 0, 0]] * 4]]
