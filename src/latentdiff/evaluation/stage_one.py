"""Metrics of an autoencoder: reconstruction, latent statistics, equivariance."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff.autoencoder import bottleneck
from latentdiff.autoencoder.autoencoder import Autoencoder
from latentdiff.autoencoder.bottleneck import Codebook
from latentdiff.autoencoder.perceptual import LPIPSDistance, unit_normalize
from latentdiff.data import loader
from latentdiff.evaluation import image_sets
from latentdiff.evaluation.distances import fid
from latentdiff.evaluation.features import Extractor
from latentdiff.evaluation.image_metrics import psnr, ssim
from latentdiff.training.distributed import World

TRANSFORMS = {  # of an image, and of its latent if the latent is equivariant
    "rotate90": lambda x: x.rot90(1, (2, 3)),
    "downsample": lambda x: F.avg_pool2d(x, 2),
}
BATCH_SIZE = 64


def reconstruct(autoencoder: Autoencoder, x: Tensor) -> Tensor:
    """Images [B, 3, H, W] -> their reconstructions from the mean of the posterior."""
    return autoencoder.decode(autoencoder.encode(x)).clamp(-1, 1)


def reconstruction_metrics(
    autoencoder: Autoencoder, data: Any, lpips: nn.Module | None, world: World, count: int
) -> dict[str, float]:
    """PSNR, SSIM and LPIPS between images and their reconstructions."""

    def metrics(batch: dict) -> dict[str, Tensor]:
        x = loader.images(batch, world.device)
        y = reconstruct(autoencoder, x)
        return {"psnr": psnr(x, y), "ssim": ssim(x, y)} | ({} if lpips is None else {"lpips": lpips(y, x).flatten()})

    return image_sets.mean_metrics(data, count, world, metrics, BATCH_SIZE)


def rfid(autoencoder: Autoencoder, data: Any, extractor: Extractor, world: World, count: int) -> dict[str, float]:
    """FID between images and their reconstructions; none for a single image, which has no covariance."""
    real = image_sets.extract(extractor, data, count, world)
    reconstructed = image_sets.extract(extractor, data, count, world, lambda x: reconstruct(autoencoder, x))
    return {"rfid": fid(real.features, reconstructed.features)} if len(real.features) > 1 else {}


@torch.no_grad()
def latent_metrics(autoencoder: Autoencoder, data: Any, world: World, count: int) -> dict[str, Any]:
    """Mean, standard deviation and noise fraction of the normalized latents; of VQ also the usage of the codebook."""
    codebook = autoencoder.quantize if isinstance(autoencoder.quantize, Codebook) else None
    counts = torch.zeros(codebook.config.codebook_size if codebook else 1, dtype=torch.int64, device=world.device)
    sums = torch.zeros(4, autoencoder.z_channels, dtype=torch.float64, device=world.device)
    for batch in loader.sequential_batches(data, world.shard(count), BATCH_SIZE):
        mean, logvar = autoencoder.moments(loader.images(batch, world.device))
        sums += bottleneck.moment_sums(mean, logvar)
        if codebook:
            counts += bottleneck.code_counts(codebook.code_indices(mean), len(counts))
    sums = world.all_reduce_sum(sums)
    mean, variance = bottleneck.latent_stats(sums)  # [C] each, before normalization
    shift, scale = (x.double().flatten() for x in (autoencoder.latent_shift, autoencoder.latent_scale))
    mean, std, noise = (mean - shift) * scale, variance.sqrt() * scale, sums[3] / sums[0] / variance
    metrics = {"latent_mean": mean.mean().item(), "latent_std": std.square().mean().sqrt().item(),
               "latent_std_per_channel": [round(v, 4) for v in std.tolist()],
               "latent_noise_fraction": noise.mean().item()}  # fmt: skip
    if codebook:
        usage, perplexity = bottleneck.codebook_usage(world.all_reduce_sum(counts))
        metrics |= {"codebook_usage": usage.item(), "codebook_perplexity": perplexity.item()}
    return metrics


def equivariance(autoencoder: Autoencoder, data: Any, world: World, count: int = 256) -> dict[str, float]:
    """Equivariance error of the latents under rotation and downscaling (Kouzelis et al. 2025, sec. 3.2).

    |encode(transform(x)) - transform(encode(x))|² over the variance of encode(x): 0 for an equivariant latent, about 2
    for unrelated ones. Downscaling is omitted if the side of the image is not divisible.
    """
    image = data.item(0, 0)["image"]
    divisible = all(side % (2 * autoencoder.factor) == 0 for side in image.shape[:2])
    transforms = {name: f for name, f in TRANSFORMS.items() if name != "downsample" or divisible}

    def metrics(batch: dict) -> dict[str, Tensor]:
        x = loader.images(batch, world.device)
        z = autoencoder.encode(x)
        errors = {name: (autoencoder.encode(f(x)) - f(z)).square().mean((1, 2, 3)) for name, f in transforms.items()}
        return errors | {"variance": z.var((1, 2, 3))}

    means = image_sets.mean_metrics(data, min(count, len(data)), world, metrics, BATCH_SIZE)
    variance = means.pop("variance")
    return {f"equivariance_{name}": error / variance for name, error in means.items()}


def masked_lpips(lpips: LPIPSDistance, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """LPIPS of y [B, 3, H, W] to x over the masked region (mask [B, 1, H, W] of 0 and 1): [B].

    The feature differences of each level are weighted by the masked fraction of each position.
    """
    total = torch.zeros(len(x), device=x.device)
    for i, (f, g) in enumerate(zip(lpips.feature_maps(y), lpips.feature_maps(x))):
        squares = (unit_normalize(f) - unit_normalize(g)).square()  # [B, C, h, w]
        differences = (squares * getattr(lpips, f"head{i}")).sum(1)  # [B, h, w]
        weight = F.interpolate(mask, f.shape[2:], mode="area")[:, 0]  # [B, h, w]
        total = total + (differences * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1e-6)
    return total
