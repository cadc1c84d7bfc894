"""The batches of stage two: latents and the fields that the conditions read, from the cache or from the images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentdiff import rng
from latentdiff.autoencoder.autoencoder import Autoencoder
from latentdiff.config import UserError
from latentdiff.data import encode_latents, loader
from latentdiff.data.fields import needs_image
from latentdiff.data.latent_cache import CachedLatents
from latentdiff.recipe import ClassifierRecipe, DiffusionRecipe, condition_fields, with_condition_fields
from latentdiff.training import run_dir
from latentdiff.training.distributed import World
from latentdiff.training.log import Log
from latentdiff.training.precision import autocast, precision


class BatchEncoder:
    """Encodes a data batch as z and the prepared fields of the conditions. `data` is the dataset to read batches from.

    Args:
        conditions, derived_fields: settings of the recipe that say which fields are read.
        prepare: (batch, device) -> prepared fields, such as Conditioner.prepare.
        feature_encoder: the frozen network of REPA (align): images -> features.
    """

    def __init__(
        self, recipe: DiffusionRecipe | ClassifierRecipe, world: World, autoencoder: Autoencoder, data: Any,
        conditions: tuple, derived_fields: tuple, prepare: Callable[[dict, torch.device], dict], log: Log,
        feature_encoder: Callable[[Tensor], Tensor] | None = None,
    ) -> None:  # fmt: skip
        self.seed, self.device, self.autoencoder = recipe.train.seed, world.device, autoencoder
        self.prepare, self.feature_encoder = prepare, feature_encoder
        self.dtype = precision(recipe.train.precision, world.device)
        stats = None
        if recipe.cache.enabled:
            weights_hash = autoencoder.weights_hash()
            name = f"{weights_hash[:12]}-{data.fingerprint()[:12]}-{recipe.cache.copies}"
            folder = Path(recipe.cache.path or run_dir.runs_root() / "cache" / name)
            cache = encode_latents.open_cache(folder, recipe.cache, data, weights_hash, self.moments, world, log.info)
            images = feature_encoder is not None or needs_image(condition_fields(conditions), data.record(0, 0))
            data, stats = CachedLatents(data, cache, images), cache.statistics()
        self.data = with_condition_fields(data, conditions, derived_fields)
        set_latent_stats(recipe.autoencoder.latent_stats, autoencoder, stats, log.info)

    @torch.no_grad()
    def moments(self, batch: dict) -> tuple[Tensor, Tensor | None]:
        """Mean and log-variance [B, C, h, w] of the posterior of a batch of images, in float32."""
        with autocast(self.device, self.dtype):
            mean, logvar = self.autoencoder.moments(loader.images(batch, self.device))
        return mean.float(), None if logvar is None else logvar.float()

    def __call__(self, batch: dict, step: int, positions: range) -> tuple[Tensor, dict[str, Tensor]]:
        """A posterior sample z [B, C, h, w], new at every step, and the prepared fields, all on the device.

        positions: of the samples in the global batch of this step.
        """
        if "mean" in batch:
            mean, logvar = (
                loader.to_device(batch[name], self.device) if name in batch else None for name in ("mean", "logvar")
            )
        else:
            mean, logvar = self.moments(batch)
        noise = rng.normal(rng.keys(self.seed, step, positions, "posterior", self.device), mean.shape[1:])
        fields = self.prepare(batch, self.device)
        if self.feature_encoder is not None:
            fields["features"] = self.feature_encoder(loader.images(batch, self.device))
        return self.autoencoder.normalize(mean, logvar, noise), fields


def set_latent_stats(
    choice: str, autoencoder: Autoencoder, measured: tuple | None, info: Callable[[str], None]
) -> None:
    """Set the normalization of the latents in the run's copy of the autoencoder (autoencoder.latent_stats).

    Args:
        choice: run (keep its own; warn if they do not fit the data), data (measured) or identity (none).
        measured: mean and variance [C] of the latents of this data, from the cache.
    """
    if choice == "identity":
        autoencoder.set_latent_stats(0.0, 1.0)
    elif measured is None:
        if choice == "data":
            raise UserError("autoencoder.latent_stats is data, which is measured while caching; set cache.enabled=true")
    elif choice == "data":
        mean, variance = (torch.from_numpy(m).float() for m in measured)
        autoencoder.set_latent_stats(mean, variance.rsqrt())
    else:
        variance = torch.from_numpy(measured[1]) * autoencoder.latent_scale.flatten().double().cpu() ** 2
        std = variance.mean().sqrt().item()
        if not 0.8 <= std <= 1.25:
            info(
                f"WARNING: the standard deviation of the normalized latents of this data is {std:.2f}, it should be 1; "
                f"autoencoder.latent_stats=data normalizes by this data"
            )
