"""Losses for image guidance: the similarity of the decoded image to a target."""

import torch
import torch.nn.functional as F
from torch import Tensor

from latentdiff.diffusion.guidance import image_guidance, image_similarity_loss, squared_error
from latentdiff.diffusion.samplers import broadcast_t, sample
from latentdiff.diffusion.schedule import Schedule, ScheduleConfig, append_dims, sampling_timesteps

IMAGE = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def downsample(x: Tensor) -> Tensor:
    return F.interpolate(x, size=(4, 4), mode="bicubic", antialias=True)


def test_the_loss_of_an_image_is_zero_for_itself_downsampled_and_above_zero_for_another() -> None:
    loss = image_similarity_loss(downsample(IMAGE), lambda x0: x0)
    assert loss(IMAGE).shape == (2,) and torch.allclose(loss(IMAGE), torch.zeros(2).double())
    assert torch.allclose(loss(IMAGE + 1), torch.full((2,), 3 * 16 / 2).double())  # half the sum of squares


def test_any_distance_and_any_decoder_can_be_used() -> None:
    distance = lambda x, y: (x - y).abs().mean((1, 2, 3), keepdim=True)  # noqa: E731
    loss = image_similarity_loss(downsample(IMAGE), lambda x0: x0 / 2, distance)
    assert loss(2 * IMAGE).tolist() == [0, 0] and (loss(IMAGE) > 0.1).all()


def test_an_unconditional_model_with_it_does_super_resolution() -> None:
    """For white noise data: the sample has the low-resolution image as target, and differs from the original."""
    schedule, target = Schedule(ScheduleConfig(kind="cosine")), downsample(IMAGE)

    def denoise(x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        alpha, sigma = (append_dims(f(broadcast_t(t, x)), x) for f in (schedule.alpha, schedule.sigma))
        return alpha * x / (alpha**2 + sigma**2), sigma * x / (alpha**2 + sigma**2)

    noise = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    errors = []
    for scale in (0.0, 100.0, -100.0):
        guided = image_guidance(denoise, image_similarity_loss(target, lambda x0: x0), scale, schedule)
        *_, x0 = sample("ddim", guided, noise, sampling_timesteps(50, schedule), schedule)
        errors.append(squared_error(downsample(x0), target).mean().item())
        assert not torch.allclose(x0, IMAGE, atol=0.5)
    assert errors[1] < 0.05 * errors[0] and errors[0] < errors[2]
