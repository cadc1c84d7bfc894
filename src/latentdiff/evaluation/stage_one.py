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

    def metrics(batch: dict) -> Tensor:
        x = loader.images(batch, world.device)
        y = reconstruct(autoencoder, x)
        return torch.stack([psnr(x, y), ssim(x, y)] + ([lpips(y, x).flatten()] if lpips is not None else []), 1)

    means = image_sets.map_batches(data, count, world, metrics, BATCH_SIZE).double().mean(0).tolist()
    return dict(zip(("psnr", "ssim", "lpips"), means))


def rfid(autoencoder: Autoencoder, data: Any, extractor: Extractor, world: World, count: int) -> dict[str, float]:
    """FID between images and their reconstructions; none for a single image, which has no covariance."""
    real = image_sets.extract(extractor, data, count, world)
    reconstructed = image_sets.extract(extractor, data, count, world, lambda x: reconstruct(autoencoder, x))
    return {"rfid": fid(real.features, reconstructed.features)} if len(real.features) > 1 else {}


def latent_metrics(autoencoder: Autoencoder, data: Any, world: World, count: int) -> dict[str, Any]:
    """Mean and standard deviation of the normalized latents (1 is right).

    KL: also the fraction of the variance that is noise of the posterior. VQ: also the fraction of the codebook in use
    and its perplexity.
    """
    codebook = autoencoder.quantize if isinstance(autoencoder.quantize, Codebook) else None
    counts = torch.zeros(codebook.config.codebook_size if codebook else 1, dtype=torch.int64, device=world.device)

    def moments(batch: dict) -> Tensor:
        mean, logvar = autoencoder.moments(loader.images(batch, world.device))
        if codebook:
            counts.add_(bottleneck.code_counts(codebook.code_indices(mean), len(counts)))
        noise = torch.zeros_like(mean) if logvar is None else logvar.exp() * autoencoder.latent_scale**2
        z = autoencoder.normalize(mean)
        return torch.stack([v.mean((2, 3)) for v in (z, z**2, noise)], 2).flatten(1)  # [B, C·3]

    values = image_sets.map_batches(data, count, world, moments, BATCH_SIZE).double().unflatten(1, (-1, 3))
    mean, square, noise = values.mean(0).T  # [C] each
    total = square - mean**2 + noise
    metrics = {
        "latent_mean": mean.mean().item(),
        "latent_std": total.mean().sqrt().item(),
        "latent_std_per_channel": [round(v, 4) for v in total.sqrt().tolist()],
        "latent_noise_fraction": (noise / total).mean().item(),
    }
    if codebook:
        usage, perplexity = bottleneck.codebook_usage(world.all_reduce_sum(counts))
        metrics |= {"codebook_usage": usage.item(), "codebook_perplexity": perplexity.item()}
    return metrics


def equivariance(autoencoder: Autoencoder, data: Any, world: World, count: int = 256) -> dict[str, float]:
    """Equivariance error of the latents under rotation and downscaling (Kouzelis et al. 2025, sec. 3.2).

    |encode(transform(x)) - transform(encode(x))|² over the variance of encode(x): 0 for an equivariant latent, about 2
    for unrelated ones. Downscaling is omitted if the side of the image is not divisible.
    """

    def errors(batch: dict) -> Tensor:
        x = loader.images(batch, world.device)
        z = autoencoder.encode(x)
        squares = [(autoencoder.encode(f(x)) - f(z)).square().mean((1, 2, 3)) for f in transforms.values()]
        return torch.stack([*squares, z.var((1, 2, 3))], 1)

    image = data.item(0, 0)["image"]
    divisible = all(side % (2 * autoencoder.factor) == 0 for side in image.shape[:2])
    transforms = {name: f for name, f in TRANSFORMS.items() if name != "downsample" or divisible}
    means = image_sets.map_batches(data, min(count, len(data)), world, errors, BATCH_SIZE).double().mean(0)
    return {f"equivariance_{name}": (means[i] / means[-1]).item() for i, name in enumerate(transforms)}


def masked_lpips(lpips: LPIPSDistance, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """LPIPS of y [B, 3, H, W] to x over the masked region (mask [B, 1, H, W] of 0 and 1): [B].

    The feature differences of each level are weighted by the masked fraction of each position.
    """
    total = torch.zeros(len(x), device=x.device)
    for i, (f, g) in enumerate(zip(lpips.feature_maps(y), lpips.feature_maps(x))):
        differences = ((unit_normalize(f) - unit_normalize(g)).square() * getattr(lpips, f"head{i}")).sum(
            1
        )  # [B, h, w]
        weight = F.interpolate(mask, f.shape[2:], mode="area")[:, 0]  # [B, h, w]
        total = total + (differences * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1e-6)
    return total
