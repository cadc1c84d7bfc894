"""Guiders: losses of a latent by what its picture resembles."""

import torch
import torch.nn.functional as F
from torch import Tensor

from latentdiff.diffusion.guidance import image_guidance
from latentdiff.diffusion.samplers import sample
from latentdiff.diffusion.schedule import Schedule, ScheduleConfig, column, timesteps
from latentdiff.sampling.image_guidance import resembles, squares

PICTURE = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def shrunk(x: Tensor) -> Tensor:
    return F.interpolate(x, size=(4, 4), mode="bicubic", antialias=True)


def test_a_picture_resembles_itself_made_small_and_no_other() -> None:
    loss = resembles(shrunk(PICTURE), lambda x0: x0)
    assert loss(PICTURE).shape == (2,) and torch.allclose(loss(PICTURE), torch.zeros(2).double())
    assert torch.allclose(loss(PICTURE + 1), torch.full((2,), 3 * 16 / 2).double())  # half the sum of squares


def test_any_distance_and_any_decoder_will_do() -> None:
    loss = resembles(shrunk(PICTURE), lambda x0: x0 / 2, lambda x, y: (x - y).abs().mean((1, 2, 3), keepdim=True))
    assert loss(2 * PICTURE).tolist() == [0, 0] and (loss(PICTURE) > 0.1).all()


def test_an_unconditional_model_under_it_is_an_upsampler() -> None:
    """White noise pixels: what is drawn has the small picture it was given, and is free beside it."""
    schedule, target = Schedule(ScheduleConfig(kind="cosine")), shrunk(PICTURE)

    def denoise(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = column(schedule.alpha(t), x), column(schedule.sigma(t), x)
        return alpha * x / (alpha**2 + sigma**2), sigma * x / (alpha**2 + sigma**2)

    noise = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    errors = []
    for scale in (0.0, 100.0, -100.0):
        guided = image_guidance(denoise, resembles(target, lambda x0: x0), scale, schedule)
        *_, x0 = sample("ddim", guided, noise, timesteps(50, schedule), schedule)
        errors.append(squares(shrunk(x0), target).mean().item())
        assert not torch.allclose(x0, PICTURE, atol=0.5)
    assert errors[1] < 0.05 * errors[0] and errors[0] < errors[2]
