"""The random warps of EQ-VAE, training with them, and training with a frozen encoder."""

import pytest
import torch
from conftest import STAGE_ONE, call, tensors_of

from latentdiff.autoencoder.autoencoder import Autoencoder, AutoencoderConfig
from latentdiff.autoencoder.equivariance import identity, sample_warp

TINY = AutoencoderConfig(channels=8, channel_mult=(1, 2), num_res_blocks=1, mid_attention=False, norm_groups=4)
SHORT = ("train.steps=4", "train.checkpoint_every=4", "train.val_every=4", "train.sample_every=4")


def test_a_warp_acts_alike_on_a_latent_and_its_image():
    """If the latent is the average-pooled image, the warped latent is the average-pooled warped image."""
    x = torch.nn.functional.interpolate(torch.rand(2, 3, 4, 3), size=(128, 96), mode="bicubic", align_corners=True)
    z = torch.nn.functional.avg_pool2d(x, 4)
    sizes = set()
    for step in range(40):
        warp = sample_warp(0.9, 0, step, (32, 24), 4)
        sizes.add((*warp(z).shape[2:],))
        height, width = warp(z).shape[2:]
        assert warp(x).shape[2:] == (4 * height, 4 * width)
        pooled = torch.nn.functional.avg_pool2d(warp(x), 4)
        assert (pooled - warp(z)).abs().max() < 0.35 * (z.max() - z.min())
        assert torch.corrcoef(torch.stack([pooled.flatten(), warp(z).flatten()]))[0, 1] > 0.97
    assert len(sizes) > 8 and any(height < width for height, width in sizes) and (32, 24) in sizes


def test_a_warp_depends_on_seed_and_step_and_occurs_in_its_fraction_of_steps():
    shape = lambda seed, step: sample_warp(0.5, seed, step, (16, 16), 8)(torch.zeros(1, 1, 16, 16)).shape  # noqa: E731
    assert all(shape(1, step) == shape(1, step) for step in range(5))
    assert [shape(1, s) for s in range(20)] != [shape(2, s) for s in range(20)]
    fraction = sum(sample_warp(0.5, 0, step, (16, 16), 8) is not identity for step in range(400)) / 400
    assert fraction == pytest.approx(0.5, abs=0.08) and sample_warp(0.0, 0, 0, (16, 16), 8) is identity


def test_the_reconstruction_is_of_the_warped_latent():
    model = Autoencoder(TINY)
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(model(x).y, model(x, None, identity).y)
    rotated = model(x, None, lambda z: z.rot90(1, (2, 3)))
    assert torch.allclose(rotated.y, model.decode(model.encode(x).rot90(1, (2, 3))), atol=1e-5)
    assert rotated.bottleneck["kl"].equal(model(x).bottleneck["kl"])


@pytest.mark.slow
def test_a_run_with_warps_trains_and_a_frozen_encoder_stays(runs):
    call(*STAGE_ONE, *SHORT, "loss.equivariance=1.0", "name=first")
    call(*STAGE_ONE, *SHORT, "init=first", "freeze_encoder=true", "train.ema_decay=0.5", "name=second")
    first, second = tensors_of(runs / "first"), tensors_of(runs / "second")
    changed = {name.split(".")[1] for name in first if not torch.equal(first[name], second[name])}
    assert "decoder" in changed and not {"encoder", "quant_conv", "quantize"} & changed


def test_freezing_a_randomly_initialized_encoder_is_refused(refused):
    assert "init" in refused(*STAGE_ONE, *SHORT, "freeze_encoder=true")
