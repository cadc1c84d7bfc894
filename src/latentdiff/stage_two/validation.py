"""Validation of stage two: the loss and the text gap on held-out data, and samples of fixed prompts. EMA weights."""

import torch
from torch import Tensor

from latentdiff import rng
from latentdiff.data import loader
from latentdiff.data.image import BadImageList
from latentdiff.model import LatentDiffusion
from latentdiff.recipe import DiffusionRecipe, condition_fields, with_condition_fields
from latentdiff.sampling.pipeline import pipeline_of
from latentdiff.stage_two.batches import BatchEncoder
from latentdiff.training import image_grid
from latentdiff.training.diagnostics import Diagnostics, Rule
from latentdiff.training.distributed import World
from latentdiff.training.log import Log
from latentdiff.training.precision import autocast

ITEMS = 256  # validation items
BATCH_SIZE = 32
IMAGES = 16  # samples, if the recipe names no prompts

RULES = (
    Rule("text_gap", 0.0003, float("inf"), "for {steps} steps, shuffling captions has not raised the loss (text_gap "
         "{value:.5f}): the model does not use the text yet; check that the captions are right and that they differ"),
    Rule("skipped_steps", 0, 0.2, "in the last {steps} steps {value:.0%} of the gradients were not finite; lower "
         "train.lr, or use train.precision=fp32"),
)  # fmt: skip


class DenoisingValidator:
    """Writes val_loss and text_gap to the log, and samples/<step>.png."""

    def __init__(
        self, recipe: DiffusionRecipe, world: World, encode_batch: BatchEncoder, val_data, bad_images: BadImageList,
        log: Log,
    ) -> None:  # fmt: skip
        self.recipe, self.world, self.encode_batch, self.bad_images, self.log = (
            recipe, world, encode_batch, bad_images, log,
        )  # fmt: skip
        data = with_condition_fields(val_data, recipe.conditions, recipe.derived_fields)
        self.batches = list(loader.sequential_batches(data, range(min(ITEMS, len(data))), BATCH_SIZE))
        captions = [caption for batch in self.batches for caption in batch.get("caption", [])]
        self.prompts = list(recipe.preview_prompts) or captions[:IMAGES] or [""]
        self.best = min((line["val_loss"] for line in log.history if line.get("val_loss")), default=float("inf"))
        self.diagnostics = Diagnostics(RULES, recipe.train.steps, log.info)

    @torch.no_grad()
    def validate(self, model: LatentDiffusion, step: int) -> None:
        """val_loss, and text_gap: the loss with the caption of the next item minus the loss with the right one.

        Neighbours with equal captions have a gap of 0, so the gap is smaller on data with few distinct captions. The
        batches are distributed over the ranks and are the same for any number of ranks.
        """
        sums = torch.zeros(4, dtype=torch.float64, device=self.world.device)  # items, their loss; with text, their gap
        for i in range(self.world.rank, len(self.batches), self.world.size):
            batch = self.batches[i]
            self.bad_images.add(batch["bad"])
            count = len(batch["index"])
            positions = range(i * BATCH_SIZE, i * BATCH_SIZE + count)
            z, fields = self.encode_batch(batch, -1, positions)
            keys = rng.keys(self.recipe.train.seed, -1, positions, "validation", z.device)
            t, eps = model.sample_timesteps(rng.uniform(keys)), rng.normal(keys, z.shape[1:])
            drops = [torch.zeros(count, dtype=torch.bool, device=z.device) for _ in model.conditioner.parts]
            with autocast(z.device, self.encode_batch.dtype):
                losses = model(z, fields, t, eps, drops)
                sums[:2] += torch.stack([torch.ones_like(losses), losses]).double().sum(1)
                if "tokens" in fields and model.teacher is None:  # the teacher would see the shuffled captions too
                    shuffled = fields | {"tokens": fields["tokens"].roll(1, dims=0)}
                    gap = model(z, shuffled, t, eps, drops) - losses
                    sums[2:] += torch.stack([torch.ones_like(gap), gap]).double().sum(1)
        items, loss, captions, gap = self.world.all_reduce_sum(sums).tolist()
        if items:
            self.report(step, {"val_loss": loss / items} | ({"text_gap": gap / captions} if captions else {}))

    def report(self, step: int, metrics: dict[str, float]) -> None:
        self.log.validation(step, metrics)
        self.diagnostics.check(step, metrics)
        if metrics["val_loss"] > 1.2 * self.best:
            self.log.info(
                f"WARNING: val_loss was {self.best:.4f} at its best and is {metrics['val_loss']:.4f} now: the model "
                f"overfits its training data. More data, fewer train.steps or a smaller unet would help"
            )
        self.best = min(self.best, metrics["val_loss"])

    def save_samples(self, model: LatentDiffusion, step: int) -> None:
        """samples/<step>.png: the preview prompts, or validation conditions; with the same seeds every time."""
        pipeline = pipeline_of(self.recipe, model, self.encode_batch.autoencoder)
        count, fields = self.preview_fields(model)
        if not self.world.is_main or not count:
            return
        with autocast(self.world.device, self.encode_batch.dtype):
            x = pipeline.generate(fields, list(range(count)))
        path = self.log.folder / "samples" / f"{step:08d}.png"
        image_grid.save_grid(x, path, columns=8 if count > 8 else 4)

    def preview_fields(self, model: LatentDiffusion) -> tuple[int, dict[str, Tensor]]:
        """How many images are sampled during training, and their prepared fields."""
        if condition_fields(self.recipe.conditions) == ("caption",):
            batch = {"caption": self.prompts}
            return len(self.prompts), model.conditioner.prepare(batch, self.world.device)
        if not model.conditioner.parts:
            return IMAGES, {}
        fields = self.encode_batch.prepare(self.batches[0], self.world.device) if self.batches else {}
        fields = {name: x[:IMAGES] for name, x in fields.items()}
        return len(next(iter(fields.values()), ())), fields
