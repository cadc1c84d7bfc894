"""What is looked at while a run trains, one class per stage: held-out data, pictures, and plain words.

Both look at the averaged weights, which are what the run leaves.
"""

import torch
from torch import Tensor, nn

from latentdiff.autoencoder.autoencoder import Autoencoder
from latentdiff.autoencoder.bottleneck import VQConfig
from latentdiff.autoencoder.perceptual import LPIPSDistance
from latentdiff.data import loader
from latentdiff.data.image import BadImageList
from latentdiff.evaluation.image_metrics import psnr, ssim
from latentdiff.recipe import AutoencoderRecipe
from latentdiff.training import image_grid
from latentdiff.training.diagnostics import Health, Rule
from latentdiff.training.distributed import World
from latentdiff.training.log import Log
from latentdiff.training.precision import autocast, precision

ITEMS = 256  # held-out items that are looked at
BATCH = 32  # of them at once

STAGE_ONE = (
    Rule("disc_right", 0.0, 0.97, "for {steps} steps the discriminator has been right {value:.0%} of the time: it wins "
         "and its gradient says little; fewer discriminator.channels or layers, or a smaller weight, would help"),
    Rule("disc_right", 0.52, 1.0, "for {steps} steps the discriminator has been right {value:.0%} of the time: it "
         "guesses and tells the autoencoder nothing; let it learn earlier (discriminator.train_from), at a larger "
         "train.lr, or give it more channels; or save its time with discriminator=none"),
    Rule("logits_real", -20, 20, "for {steps} steps the discriminator's logits have been far from 0 ({value:.0f}): it "
         "runs away; lower train.lr"),
    Rule("code_recent", 0.2, 1.0, "for {steps} steps only {value:.0%} of the codebook has been in use; a smaller "
         "autoencoder.bottleneck.codebook_size or reset_after would help"),
    Rule("latent_std", 0.05, 50, "for {steps} steps the latents' standard deviation has been {value:.3g}, where 0.1 to "
         "10 is usual; change autoencoder.bottleneck.weight (a larger one draws it towards 1)"),
    Rule("idle_channels", 0, 0.5, "for {steps} steps {value:.0%} of the latent channels have held noise alone; lower "
         "autoencoder.bottleneck.weight, or use fewer autoencoder.z_channels"),
    Rule("skipped", 0, 0.2, "for {steps} steps {value:.0%} of the gradients have not been finite; lower train.lr, or "
         "use train.precision=fp32"),
)  # fmt: skip


class ReconstructionValidator:
    """Stage one: PSNR, SSIM and LPIPS of held-out pictures, and a grid of reconstructions."""

    PICTURES = 8

    def __init__(
        self, r: AutoencoderRecipe, world: World, held_out, distance: nn.Module | None, bad: BadImageList, log: Log
    ) -> None:
        self.r, self.world, self.log, self.bad = r, world, log, bad
        self.dtype = precision(r.train.precision, world.device)
        self.lpips = distance if isinstance(distance, LPIPSDistance) else None
        self.batches = list(loader.sequential_batches(held_out, range(min(ITEMS, len(held_out))), BATCH))
        self.batches = self.batches[world.rank :: world.size]
        self.best = max((row["psnr"] for row in log.rows if row.get("psnr")), default=-1.0)
        self.health = Health(STAGE_ONE, r.train.steps, log.say)

    @torch.no_grad()
    def reconstruct(self, model: Autoencoder, batch: dict) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """x, y [B, 3, H, W] in [-1, 1], and the moments of the latent before normalisation."""
        x = loader.images(batch, self.world.device)
        with autocast(x.device, self.dtype):
            mean, logvar = model.moments(x)
            return x, model.decode(model.normalise(mean)).clamp(-1, 1), mean, logvar

    @torch.no_grad()
    def validate(self, model: Autoencoder, step: int) -> None:
        """psnr, ssim, lpips, and how far the latents spread; each rank looks at its share."""
        names = ("psnr", "ssim", "lpips")[: 2 if self.lpips is None else 3]
        scores = torch.zeros(1 + len(names), dtype=torch.float64, device=self.world.device)  # pictures, sums
        spread = torch.zeros(4, model.z_channels, dtype=torch.float64, device=self.world.device)
        for batch in self.batches:
            self.bad.note(batch["bad"])
            x, y, mean, logvar = self.reconstruct(model, batch)
            found = [psnr(x, y), ssim(x, y), *([] if self.lpips is None else [self.lpips(y, x).flatten()])]
            scores += torch.stack([torch.ones_like(found[0]), *found]).double().sum(1)
            noise = torch.zeros_like(mean) if logvar is None else logvar.exp()
            ones = torch.ones_like(mean)
            spread += torch.stack([v.double().sum((0, 2, 3)) for v in (ones, mean, mean**2, noise)])  # [4, C]
        count, *scores = self.world.sum(scores).tolist()
        spread = self.world.sum(spread)
        if count:
            self.report(step, {name: total / count for name, total in zip(names, scores)}, spread)

    def report(self, step: int, values: dict[str, float], sums: Tensor) -> None:
        mean, squares, noise = sums[1:] / sums[0]
        spread = squares - mean**2  # per channel
        if not isinstance(self.r.autoencoder.bottleneck, VQConfig):
            values["latent_std"] = spread.mean().sqrt().item()
            values["idle_channels"] = (spread < 0.1 * (spread + noise)).double().mean().item()
        self.log.validation(step, values)
        self.health.look(step, values)
        if values["psnr"] < self.best - 3:
            self.log.say(
                f"WARNING: PSNR fell from {self.best:.1f} to {values['psnr']:.1f} dB. If the discriminator has just "
                f"begun to weigh, give it a longer discriminator.ramp or a smaller weight; otherwise lower train.lr"
            )
        self.best = max(self.best, values["psnr"])

    def draw(self, model: Autoencoder, step: int) -> None:
        """samples/<step>.png: pictures above their reconstructions."""
        if self.world.is_main and self.batches:
            x, y, *_ = self.reconstruct(model, self.batches[0])
            count = min(self.PICTURES, len(x))
            image_grid.save_grid(
                torch.cat([x[:count], y[:count]]), self.log.folder / "samples" / f"{step:08d}.png", count
            )
