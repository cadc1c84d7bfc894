"""What an autoencoder loses, and what its latents are like."""

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

TURNS = {  # what is done to a picture and, if the latent is a smaller picture, to its latent
    "turn": lambda x: x.rot90(1, (2, 3)),
    "half": lambda x: F.avg_pool2d(x, 2),
}


def again(autoencoder: Autoencoder, x: Tensor) -> Tensor:
    """The picture from the mean of its posterior, [B, 3, H, W]."""
    return autoencoder.decode(autoencoder.encode(x)).clamp(-1, 1)


def reconstruction(
    autoencoder: Autoencoder, data: Any, distance: nn.Module | None, world: World, count: int
) -> dict[str, float]:
    """PSNR, SSIM and LPIPS of pictures and their reconstructions."""

    def look(batch: dict) -> Tensor:
        x = loader.images(batch, world.device)
        y = again(autoencoder, x)
        found = [psnr(x, y), ssim(x, y)] + ([distance(y, x).flatten()] if distance is not None else [])
        return torch.stack(found, 1)

    means = image_sets.over(data, count, world, look, 64).double().mean(0).tolist()
    return dict(zip(("psnr", "ssim", "lpips"), means))


def rfid(autoencoder: Autoencoder, data: Any, extractor: Extractor, world: World, count: int) -> dict[str, float]:
    """FID between pictures and their reconstructions."""
    real = image_sets.extract(extractor, data, count, world)
    made = image_sets.extract(extractor, data, count, world, lambda x: again(autoencoder, x))
    return {"rfid": fid(real.features, made.features)} if len(real.features) > 1 else {}  # one picture has no spread


def latents(autoencoder: Autoencoder, data: Any, world: World, count: int) -> dict[str, Any]:
    """Of normalised latents: mean, standard deviation (1 is right), and of KL the share of the variance that is noise;
    of VQ the share of the codebook in use and its perplexity."""
    book = autoencoder.quantize if isinstance(autoencoder.quantize, Codebook) else None
    counts = torch.zeros(book.config.codebook_size if book else 1, dtype=torch.int64, device=world.device)

    def look(batch: dict) -> Tensor:
        mean, logvar = autoencoder.moments(loader.images(batch, world.device))
        if book:
            counts.add_(bottleneck.code_counts(book.code_indices(mean), len(counts)))
        noise = torch.zeros_like(mean) if logvar is None else logvar.exp() * autoencoder.latent_scale**2
        z = autoencoder.normalize(mean)
        return torch.stack([v.mean((2, 3)) for v in (z, z**2, noise)], 2).flatten(1)  # [B, C·3]

    rows = image_sets.over(data, count, world, look, 64).double().unflatten(1, (-1, 3))
    mean, square, noise = rows.mean(0).T  # [C] each
    total = square - mean**2 + noise
    figures = {"latent_mean": mean.mean().item(), "latent_std": total.mean().sqrt().item(),
               "latent_std_per_channel": [round(v, 4) for v in total.sqrt().tolist()],
               "latent_noise_share": (noise / total).mean().item()}  # fmt: skip
    if book:
        usage, perplexity = bottleneck.codebook_usage(world.all_reduce_sum(counts))
        figures |= {"codebook_usage": usage.item(), "codebook_perplexity": perplexity.item()}
    return figures


def equivariance(autoencoder: Autoencoder, data: Any, world: World, count: int = 256) -> dict[str, float]:
    """How far the latent is from turning, and from shrinking, with its picture (Kouzelis et al. 2025, sec. 3.2).

    |encode(change(x)) - change(encode(x))|² over the variance of encode(x): 0 for a latent that is a smaller picture,
    about 2 where they have nothing to do with each other. Measured where the sides allow it.
    """

    def look(batch: dict) -> Tensor:
        x = loader.images(batch, world.device)
        z = autoencoder.encode(x)
        errors = [(autoencoder.encode(change(x)) - change(z)).square().mean((1, 2, 3)) for change in changes.values()]
        return torch.stack([*errors, z.var((1, 2, 3))], 1)

    image = data.item(0, 0)["image"]
    fits = all(side % (2 * autoencoder.factor) == 0 for side in image.shape[:2])
    changes = {name: change for name, change in TURNS.items() if name != "half" or fits}
    rows = image_sets.over(data, min(count, len(data)), world, look, 64).double().mean(0)
    return {f"equivariance_{name}": (rows[i] / rows[-1]).item() for i, name in enumerate(changes)}


def lpips_in_hole(distance: LPIPSDistance, x: Tensor, y: Tensor, hole: Tensor) -> Tensor:
    """LPIPS of y against x, averaged over the hole alone: [B, 3, H, W] twice, hole [B, 1, H, W] of 0 and 1 -> [B].

    Each level's map of differences is weighted by the share of every cell that the hole covers.
    """
    total = torch.zeros(len(x), device=x.device)
    for i, (f, g) in enumerate(zip(distance.feature_maps(y), distance.feature_maps(x))):
        differences = ((unit_normalize(f) - unit_normalize(g)).square() * getattr(distance, f"head{i}")).sum(1)  # [B, h, w]
        weight = F.interpolate(hole, f.shape[2:], mode="area")[:, 0]
        total = total + (differences * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1e-6)
    return total
