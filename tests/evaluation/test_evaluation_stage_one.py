"""Latent statistics and equivariance of known latents, and LPIPS of the masked region."""

import pytest
import torch

from latentdiff.autoencoder.autoencoder import Autoencoder, AutoencoderConfig
from latentdiff.autoencoder.bottleneck import IdentityConfig, VQConfig
from latentdiff.autoencoder.perceptual import LPIPSDistance
from latentdiff.autoencoder.pretrained import features
from latentdiff.data.shapes.dataset import ShapesConfig, ShapesDataset
from latentdiff.evaluation import stage_one
from latentdiff.training.distributed import World

SINGLE_PROCESS = World(0, 1, torch.device("cpu"))
SMALL = {"channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "norm_groups": 4}
DATA = ShapesDataset(ShapesConfig(count=16, val_count=16))


def small_autoencoder(**changes) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(AutoencoderConfig(**(SMALL | changes))).eval()


def test_pixels_are_equivariant_and_a_random_encoder_is_not():
    pixels = small_autoencoder(channel_mult=(), z_channels=3, bottleneck=IdentityConfig())
    assert stage_one.equivariance(pixels, DATA, SINGLE_PROCESS) == pytest.approx(
        {"equivariance_rotate90": 0, "equivariance_downsample": 0}
    )
    metrics = stage_one.equivariance(small_autoencoder(), DATA, SINGLE_PROCESS)
    assert all(value > 0.01 for value in metrics.values())


def test_latent_metrics_equal_direct_statistics_of_the_latents():
    model = small_autoencoder()
    model.set_latent_stats(0.1, 2.0)
    x = torch.stack([torch.from_numpy(DATA.item(i, 0)["image"]) for i in range(16)]).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        mean, logvar = model.moments(x)
        z = model.normalize(mean)
    noise = (logvar.exp() * 4).mean((0, 2, 3))
    total = z.var((0, 2, 3), correction=0) + noise
    metrics = stage_one.latent_metrics(model, DATA, SINGLE_PROCESS, 16)
    assert metrics["latent_mean"] == pytest.approx(z.mean().item(), rel=1e-4)
    assert metrics["latent_std"] == pytest.approx(total.mean().sqrt().item(), rel=1e-4)
    assert metrics["latent_noise_fraction"] == pytest.approx((noise / total).mean().item(), rel=1e-4)
    assert "codebook_usage" not in metrics


def test_codebook_usage_counts_the_codes_that_are_used():
    model = small_autoencoder(bottleneck=VQConfig(codebook_size=8))
    with torch.no_grad():
        model.quantize.embedding.weight.fill_(1e6)
        model.quantize.embedding.weight[:2] = torch.tensor([[10.0] * 4, [-10.0] * 4])
    metrics = stage_one.latent_metrics(model, DATA, SINGLE_PROCESS, 16)
    assert metrics["codebook_usage"] in (1 / 8, 2 / 8) and 1 <= metrics["codebook_perplexity"] <= 2


@pytest.fixture
def lpips() -> LPIPSDistance:
    generator = torch.Generator().manual_seed(0)
    shapes = {k: v.shape for k, v in features("squeezenet").state_dict().items()}
    weights = {k: torch.randn(s, generator=generator) * (2 / max(1, s[1:].numel())) ** 0.5 for k, s in shapes.items()}
    heads = [torch.rand(1, c, 1, 1, generator=generator) for c in (64, 128, 256, 384, 384, 512, 512)]
    return LPIPSDistance("squeezenet", weights, heads)


def test_masked_lpips_with_a_mask_of_the_whole_image_is_lpips(lpips):
    x, y = torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    masked = stage_one.masked_lpips(lpips, x, y, torch.ones(2, 1, 64, 64))
    torch.testing.assert_close(masked, lpips(y, x).flatten(), rtol=1e-4, atol=1e-6)


def test_masked_lpips_ignores_changes_far_from_the_mask(lpips):
    x = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mask = torch.zeros(1, 1, 256, 256)
    mask[..., :16, :16] = 1
    far, near = x.clone(), x.clone()
    far[..., 224:, 224:] = 0
    near[..., :16, :16] = 0
    assert stage_one.masked_lpips(lpips, x, far, mask) < 0.01 * stage_one.masked_lpips(lpips, x, near, mask)
    assert lpips(far, x) > 0.1 * lpips(near, x)
