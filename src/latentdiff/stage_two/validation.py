"""What is looked at while a run trains, one class per stage: held-out data, pictures, and plain words.

Both look at the averaged weights, which are what the run leaves.
"""

import torch

from latentdiff import recipe, rng
from latentdiff.data import loader
from latentdiff.model import LatentDiffusion
from latentdiff.recipe import DiffusionRecipe
from latentdiff.stage_two.batches import BatchEncoder
from latentdiff.training import image_grid
from latentdiff.training.diagnostics import Health, Rule
from latentdiff.training.distributed import World
from latentdiff.training.log import Log
from latentdiff.training.precision import autocast

ITEMS = 256  # held-out items that are looked at
BATCH = 32  # of them at once

STAGE_TWO = (
    Rule("text_gap", 0.0003, float("inf"), "for {steps} steps others' captions have done as well as the true ones "
         "(text_gap {value:.5f}): the text is not used yet; are the captions right, and do they differ?"),
    Rule("skipped", 0, 0.2, "for {steps} steps {value:.0%} of the gradients have not been finite; lower train.lr, or "
         "use train.precision=fp32"),
)  # fmt: skip


class DenoisingValidator:
    """Stage two: the loss and the text gap on held-out data, and fixed prompts drawn from fixed noise."""

    PICTURES = 16

    def __init__(self, r: DiffusionRecipe, world: World, latents: BatchEncoder, held_out, log: Log) -> None:
        self.r, self.world, self.latents, self.log = r, world, latents, log
        self.batches = list(
            loader.sequential_batches(recipe.with_fields(r, held_out), range(min(ITEMS, len(held_out))), BATCH)
        )
        captions = [c for b in self.batches for c in b.get("caption", [])]
        self.prompts = list(r.preview_prompts) or captions[: self.PICTURES] or [""]
        self.best = min((row["val_loss"] for row in log.rows if row.get("val_loss")), default=float("inf"))
        self.health = Health(STAGE_TWO, r.train.steps, log.say)

    @torch.no_grad()
    def validate(self, model: LatentDiffusion, step: int) -> None:
        """val_loss, and text_gap: the loss with the next item's caption minus the loss with the true one.

        Neighbours with the same caption have a gap of 0, so a set of few captions has a smaller gap. The ranks take
        turns with the batches, which are the same for any number of ranks.
        """
        sums = torch.zeros(4, dtype=torch.float64, device=self.world.device)  # items, their loss; with text, their gap
        for i in range(self.world.rank, len(self.batches), self.world.size):
            batch = self.batches[i]
            count = len(batch["index"])
            z, fields = self.latents(batch, -1, range(i * BATCH, i * BATCH + count))
            keys = rng.keys(self.r.train.seed, -1, range(i * BATCH, i * BATCH + count), "validation", z.device)
            t, eps = model.draw_timesteps(rng.uniform(keys)), rng.normal(keys, z.shape[1:])
            shown = [torch.zeros(count, dtype=torch.bool, device=z.device) for _ in model.conditioner.parts]
            with autocast(z.device, self.latents.dtype):
                loss = model(z, fields, t, eps, shown)
                sums[:2] += torch.stack([torch.ones_like(loss), loss]).double().sum(1)
                if "tokens" in fields and model.teacher is None:  # he would be told the others' captions as well
                    others = fields | {"tokens": fields["tokens"].roll(1, dims=0)}
                    gap = model(z, others, t, eps, shown) - loss
                    sums[2:] += torch.stack([torch.ones_like(gap), gap]).double().sum(1)
        items, loss, texts, gap = self.world.sum(sums).tolist()
        if items:
            self.report(step, {"val_loss": loss / items} | ({"text_gap": gap / texts} if texts else {}))

    def report(self, step: int, values: dict[str, float]) -> None:
        self.log.validation(step, values)
        self.health.look(step, values)
        if values["val_loss"] > 1.2 * self.best:
            self.log.say(
                f"WARNING: val_loss was {self.best:.4f} at its best and is {values['val_loss']:.4f} now: the model "
                f"learns its training data by heart. More data, fewer train.steps or a smaller unet would help"
            )
        self.best = min(self.best, values["val_loss"])

    @torch.no_grad()
    def draw(self, model: LatentDiffusion, step: int) -> None:
        """samples/<step>.png: the preview prompts, or as many unprompted pictures; from the same noise every time."""
        count, fields = self.previewed(model)
        if not self.world.is_main or not count:
            return
        with autocast(self.world.device, self.latents.dtype):
            for z in model.draw(fields, list(range(count)), self.shape(), self.r.sampling):
                pass
            x = model.finished(self.latents.autoencoder.decode(z), fields)
        image_grid.save_grid(x, self.log.folder / "samples" / f"{step:08d}.png", columns=8 if count > 8 else 4)

    def previewed(self, model: LatentDiffusion) -> tuple[int, dict]:
        """How many pictures are drawn while training, and the fields of their conditions."""
        if self.latents.wanted == ("caption",):
            return len(self.prompts), {"tokens": self.latents.tokenizer.encode(self.prompts).to(self.world.device)}
        if not model.conditioner.parts:
            return self.PICTURES, {}
        fields = self.latents.fields(self.batches[0]) if self.batches else {}
        fields = {name: x[: self.PICTURES] for name, x in fields.items()}
        return len(next(iter(fields.values()), ())), fields

    def shape(self) -> tuple[int, int, int]:
        """Of a latent of the training size."""
        (height, width), autoencoder = recipe.size_of(self.r), self.latents.autoencoder
        return autoencoder.z_channels, height // autoencoder.factor, width // autoencoder.factor
