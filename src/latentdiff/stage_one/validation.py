"""Validation of stage one during training: held-out metrics of the EMA weights, reconstructions, and warnings."""

import torch
from torch import Tensor, nn

from latentdiff.autoencoder.autoencoder import Autoencoder
from latentdiff.autoencoder.bottleneck import VQConfig, latent_stats, moment_sums
from latentdiff.autoencoder.perceptual import LPIPSDistance
from latentdiff.data import loader
from latentdiff.data.image import BadImageList
from latentdiff.evaluation.image_metrics import psnr, ssim
from latentdiff.recipe import AutoencoderRecipe
from latentdiff.training import image_grid
from latentdiff.training.diagnostics import Diagnostics, Rule
from latentdiff.training.distributed import World
from latentdiff.training.log import Log
from latentdiff.training.precision import autocast, precision

MAX_IMAGES = 256  # of the held-out images
BATCH_SIZE = 32
GRID_IMAGES = 8

RULES = (
    Rule("disc_accuracy", 0.0, 0.97, "for {steps} steps the accuracy of the discriminator has been {value:.0%}, so its "
         "gradient carries little information; use fewer discriminator.channels or layers, or a smaller weight"),
    Rule("disc_accuracy", 0.52, 1.0, "for {steps} steps the accuracy of the discriminator has been {value:.0%}, close "
         "to chance; train it earlier (discriminator.train_from), with a larger train.lr or more channels, or train "
         "without it (discriminator=none)"),
    Rule("logits_real", -20, 20, "for {steps} steps the mean logit of the discriminator for real images has been "
         "{value:.0f}, which is far from 0: it diverges; lower train.lr"),
    Rule("codebook_usage_100", 0.2, 1.0, "for {steps} steps only {value:.0%} of the codebook has been in use; use a "
         "smaller autoencoder.bottleneck.codebook_size or reset_after"),
    Rule("latent_std", 0.05, 50, "for {steps} steps the standard deviation of the latents has been {value:.3g}; 0.1 to "
         "10 is usual; change autoencoder.bottleneck.weight (a larger one moves it towards 1)"),
    Rule("unused_channels", 0, 0.5, "for {steps} steps {value:.0%} of the latent channels have been almost pure noise; "
         "lower autoencoder.bottleneck.weight, or use fewer autoencoder.z_channels"),
    Rule("skipped_steps", 0, 0.2, "for {steps} steps {value:.0%} of the steps have been skipped because gradients were "
         "not finite; lower train.lr, or use train.precision=fp32"),
)  # fmt: skip


class ReconstructionValidator:
    """PSNR, SSIM and LPIPS of held-out images, statistics of their latents, and a grid of reconstructions.

    perceptual: the distance of the loss; "lpips" is reported if it is LPIPS. bad_images: lists unreadable images.
    """

    def __init__(
        self, r: AutoencoderRecipe, world: World, val_data, perceptual: nn.Module | None, bad_images: BadImageList,
        log: Log,
    ) -> None:  # fmt: skip
        self.r, self.world, self.log, self.bad_images = r, world, log, bad_images
        self.dtype = precision(r.train.precision, world.device)
        self.lpips = perceptual if isinstance(perceptual, LPIPSDistance) else None
        batches = list(loader.sequential_batches(val_data, range(min(MAX_IMAGES, len(val_data))), BATCH_SIZE))
        self.batches = batches[world.rank :: world.size]
        self.best_psnr = max((line["psnr"] for line in log.history if line.get("psnr")), default=-1.0)
        self.diagnostics = Diagnostics(RULES, r.train.steps, log.info)

    @torch.no_grad()
    def reconstruct(self, model: Autoencoder, batch: dict) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """x, y [B, 3, H, W] in [-1, 1], and mean and logvar of the latent before normalization."""
        x = loader.images(batch, self.world.device)
        with autocast(x.device, self.dtype):
            mean, logvar = model.moments(x)
            return x, model.decode(model.normalize(mean)).clamp(-1, 1), mean, logvar

    @torch.no_grad()
    def validate(self, model: Autoencoder, step: int) -> None:
        """Compute and log the metrics; all ranks must call it."""
        names = ("psnr", "ssim") if self.lpips is None else ("psnr", "ssim", "lpips")
        totals = torch.zeros(1 + len(names), dtype=torch.float64, device=self.world.device)  # images, sum per metric
        latent_sums = torch.zeros(4, model.z_channels, dtype=torch.float64, device=self.world.device)
        for batch in self.batches:
            self.bad_images.add(batch["bad"])
            x, y, mean, logvar = self.reconstruct(model, batch)
            metrics = [psnr(x, y), ssim(x, y), *([] if self.lpips is None else [self.lpips(y, x).flatten()])]
            totals += torch.stack([torch.ones_like(metrics[0]), *metrics]).double().sum(1)
            latent_sums += moment_sums(mean, logvar)
        count, *totals = self.world.all_reduce_sum(totals).tolist()
        latent_sums = self.world.all_reduce_sum(latent_sums)
        if count:
            self.report(step, {name: total / count for name, total in zip(names, totals)}, latent_sums)

    def report(self, step: int, metrics: dict[str, float], latent_sums: Tensor) -> None:
        """Add the statistics of the latents (moment_sums over all images), log the metrics and check them."""
        if not isinstance(self.r.autoencoder.bottleneck, VQConfig):
            _, variance = latent_stats(latent_sums)  # [C]
            noise = latent_sums[3] / latent_sums[0]  # [C], mean variance of the posteriors
            signal = variance - noise
            metrics["latent_std"] = signal.mean().sqrt().item()
            metrics["unused_channels"] = (signal < 0.1 * variance).double().mean().item()
        self.log.validation(step, metrics)
        self.diagnostics.check(step, metrics)
        if metrics["psnr"] < self.best_psnr - 3:
            self.log.info(
                f"WARNING: PSNR fell from {self.best_psnr:.1f} to {metrics['psnr']:.1f} dB. If the adversarial loss "
                f"has just started, use a longer discriminator.ramp or a smaller weight; otherwise lower train.lr"
            )
        self.best_psnr = max(self.best_psnr, metrics["psnr"])

    def save_samples(self, model: Autoencoder, step: int) -> None:
        """Save samples/<step>.png: held-out images above their reconstructions."""
        if self.world.is_main and self.batches:
            x, y, *_ = self.reconstruct(model, self.batches[0])
            x, y = x[:GRID_IMAGES], y[:GRID_IMAGES]
            image_grid.save_grid(torch.cat([x, y]), self.log.folder / "samples" / f"{step:08d}.png", len(x))
