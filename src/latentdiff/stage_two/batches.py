"""What stage two trains on: the latents and conditions of a batch, from the cache or from the pictures."""

from pathlib import Path

import torch
from torch import Tensor

from latentdiff import build, recipe, rng
from latentdiff.autoencoder.autoencoder import Autoencoder
from latentdiff.data import encode_latents, fields, loader
from latentdiff.data import latent_cache as latent_cache
from latentdiff.data.tokenizer import CaptionTokenizer
from latentdiff.diffusion.alignment import open_teacher
from latentdiff.recipe import DiffusionRecipe
from latentdiff.training import run_dir
from latentdiff.training.distributed import World
from latentdiff.training.log import Log
from latentdiff.training.precision import autocast, precision


class BatchEncoder:
    """`rows` is the data set to read from; a call turns one of its batches into z and what the conditions read."""

    def __init__(
        self, r: DiffusionRecipe, world: World, autoencoder: Autoencoder, tokenizer: CaptionTokenizer | None, data,
        log: Log,
    ) -> None:  # fmt: skip
        self.seed, self.device, self.autoencoder, self.tokenizer = r.train.seed, world.device, autoencoder, tokenizer
        self.wanted = recipe.reads(r)
        self.dtype = precision(r.train.precision, world.device)
        self.bad = recipe.bad_list(r, log.folder, data)
        self.teacher = None if r.align is None else open_teacher(r.align, world.device)
        self.rows, statistics = data, None
        if r.cache.enabled:
            weights = autoencoder.weights_hash()
            name = f"{weights[:12]}-{data.fingerprint()[:12]}-{r.cache.copies}"
            where = Path(r.cache.path or run_dir.runs_root() / "cache" / name)
            made = encode_latents.open_cache(where, r.cache, data, weights, self.moments, world, log.say)
            pixels = self.teacher is not None or fields.needs_picture(self.wanted, data.record(0, 0))
            self.rows, statistics = latent_cache.CachedLatents(data, made, pixels), made.statistics()
        self.rows = recipe.with_fields(r, self.rows)
        build.choose_statistics(r, autoencoder, statistics, log.say)

    @torch.no_grad()
    def moments(self, batch: dict) -> tuple[Tensor, Tensor | None]:
        with autocast(self.device, self.dtype):
            mean, logvar = self.autoencoder.moments(loader.images(batch, self.device))
        return mean.float(), None if logvar is None else logvar.float()

    def __call__(self, batch: dict, step: int, positions: range) -> tuple[Tensor, dict]:
        """A posterior sample z [B, C, h, w], drawn anew at every step, and the fields that the conditions read."""
        self.bad.note(batch["bad"])
        if "mean" in batch:
            mean, logvar = (self.sent(batch[name]) if name in batch else None for name in ("mean", "logvar"))
        else:
            mean, logvar = self.moments(batch)
        noise = rng.normal(rng.keys(self.seed, step, positions, "posterior", self.device), mean.shape[1:])
        found = self.fields(batch)
        if self.teacher is not None:
            found["features"] = self.teacher(loader.images(batch, self.device))
        return self.autoencoder.normalise(mean, logvar, noise), found

    def fields(self, batch: dict) -> dict:
        """What the conditions read, on the device."""
        found = {name: self.sent(fields.stack_field(name, batch[name])) for name in self.wanted if name != "caption"}
        if self.tokenizer is not None:
            found["tokens"] = self.sent(self.tokenizer.encode(batch["caption"]))
        return found

    def sent(self, x: Tensor) -> Tensor:
        return loader.sent(x, self.device)
