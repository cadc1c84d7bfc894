"""Stage two: train a latent diffusion model on a frozen autoencoder's latents.

    python train_diffusion.py [RECIPE.py] [field=value ...] [--overfit N] [--report-to tensorboard|wandb]
    torchrun --nproc_per_node=8 train_diffusion.py RECIPE.py ...

RECIPE.py      what to train (default: recipes/diffusion/demo.py); RECIPE.py --help lists every field of it
field=value    changes a field by its dotted path:  train.lr=5e-5  unet.channels=256  conditions.0.dropout=0.2
autoencoder=   the frozen first stage: a stage-one run (name or folder), or an autoencoder recipe used untrained
name=NAME      the run's folder, runs/NAME (LATENTDIFF_RUNS changes the root); a run that exists is resumed
--overfit N    train on N items only: a first check that anything is right
"""

from latentdiff import cli

cli.answer_help(__doc__)

from pathlib import Path

import torch
from torch import Tensor

from latentdiff import keyed, recipe
from latentdiff.config import hash_of
from latentdiff.data import cache as latent_cache
from latentdiff.data import loader
from latentdiff.data.picture import BadList
from latentdiff.latent_diffusion import LatentDiffusion
from latentdiff.recipe import DiffusionRecipe
from latentdiff.training import checkpoint, optim, pictures, run
from latentdiff.training.ema import EMA
from latentdiff.training.log import Log, plan
from latentdiff.training.world import World, autocast, precision, start


def main(words: list[str]) -> None:
    r, report_to = cli.training_recipe(words, DiffusionRecipe, "recipes/diffusion/demo.py")
    world = start(r.train.device, deterministic=r.train.deterministic)
    data, held_out = recipe.open_data(r, "train"), recipe.open_data(r, "val")
    micro = loader.micro_batches(world.rank, world.size, r.train.batch_size, r.train.accumulate)
    folder, newest = run.open_run(r, world)
    tensors, state = checkpoint.load(newest) if newest else ({}, {"step": 0})
    log = Log(folder, world, state["step"], r.train, report_to)

    autoencoder, first_stage = recipe.open_autoencoder(r, folder, world, log.say)
    tokenizer = recipe.open_tokenizer(r, folder, data, world)
    model = world.place(recipe.build_diffusion(r, autoencoder.z_channels, tokenizer))
    ema = EMA(model, r.train.ema)
    optimizer = optim.adamw(model, r.train)
    scaler = optim.fp16_scaler(r.train, world.device)
    if newest:
        model.load_state_dict(tensors["model"])
        ema.model.load_state_dict(tensors["ema"])
        optim.load_state(optimizer, scaler, tensors["optimizer"], state)
    log.say(describe(r, world, folder, data, held_out, autoencoder, model, state["step"]))

    latents = Latents(r, world, autoencoder, tokenizer, data, log, folder)
    watch = Watch(r, world, latents, held_out, folder, log)
    run.begin(folder, r, world, lambda: recipe.keep_parts(folder, autoencoder, first_stage, tokenizer))
    log.start()
    parallel = world.parallel(model, broadcast_buffers=False)
    if r.train.compile:
        model.unet.compile()
    train(r, world, parallel, model, ema, optimizer, scaler, latents, watch, log, folder, state["step"], micro)


def train(r, world, parallel, model, ema, optimizer, scaler, latents, watch, log, folder, first, micro) -> None:
    """The loop. `micro` holds the positions in the global batch that this rank computes, piece by piece."""
    t, stop, dtype = r.train, run.Stop(), precision(r.train.precision, world.device)
    stream = loader.batches(latents.rows, t.seed, t.batch_size, micro, first, t.steps, t.workers)
    for step in range(first, t.steps):
        for positions in micro:
            z, batch = latents(next(stream), step, positions)
            timesteps = model.draw_timesteps(keyed.keys(t.seed, step, positions, "t", z.device))
            eps = keyed.normal(keyed.keys(t.seed, step, positions, "eps", z.device), z.shape[1:])
            drops = model.draw_drops(keyed.keys(t.seed, step, positions, "drop", z.device))
            with world.no_sync(parallel, positions is not micro[-1]):
                with autocast(z.device, dtype):
                    loss = parallel(z, batch, timesteps, eps, drops).mean()
                optim.backward(loss / len(micro), scaler)
            log.add(loss=loss)
        if (step + 1) % t.log_every == 0:
            scale = optim.scale(scaler)  # of fp16 gradients, until the step takes it back
            log.add(**{f"grad_{name}": optim.norm_of(part) / scale for name, part in model.named_children()})
        norm = optim.step(optimizer, t, optim.rate(t, step), scaler)
        ema.update(step, norm)
        log.add(grad_norm=norm, skipped=(~torch.isfinite(norm)).float())
        log.report(step + 1, lr=optim.rate(t, step))

        done, leave = step + 1, world.agree(stop.asked)
        with log.aside():
            if done % t.val_every == 0 or done == t.steps:
                watch.validate(ema.model, done)
            if done % t.sample_every == 0 or done == t.steps:
                watch.draw(ema.model, done)
            if (done % t.checkpoint_every == 0 or done == t.steps or leave) and world.is_main:
                parts = {
                    "model": model.state_dict(),
                    "ema": ema.model.state_dict(),
                    "optimizer": optim.state_tensors(optimizer),
                }
                checkpoint.save(folder / "checkpoints", done, parts, optim.state(scaler), t.keep)
        if leave:
            log.say(f"stopped after step {done}; start again with the same command to go on")
            return
    finish(r, world, ema.model, log, folder)


def finish(r: DiffusionRecipe, world: World, model: LatentDiffusion, log: Log, folder: Path) -> None:
    """Leave the averaged weights, which sample.py uses, and the curve."""
    if world.is_main:
        about = {"latentdiff.recipe": hash_of(r), "latentdiff.step": str(r.train.steps)}
        checkpoint.write_tensors(folder / "model.safetensors", model.state_dict(), about)
        pictures.curve(folder / "metrics.jsonl", folder / "curve.png", ("loss", "val_loss", "text_gap", "grad_norm"))
    log.close()
    log.say(f"done: {folder}  (python sample.py --run {folder} --prompt ...)")


class Latents:
    """z and conditions of a batch: from the cache, or from the pictures where there is none."""

    def __init__(self, r, world, autoencoder, tokenizer, data, log, folder) -> None:
        self.seed, self.device, self.autoencoder, self.tokenizer = r.train.seed, world.device, autoencoder, tokenizer
        self.dtype = precision(r.train.precision, world.device)
        self.bad = BadList(folder / "bad_pictures.jsonl", len(data), getattr(r.data, "max_bad", 1.0))
        self.rows, statistics = data, None
        if r.cache.enabled:
            weights = autoencoder.weights_hash()
            where = Path(
                r.cache.path or run.runs_root() / "cache" / f"{weights[:12]}-{data.fingerprint()[:12]}-{r.cache.copies}"
            )
            made = latent_cache.open_cache(
                where, r.cache, data, weights, lambda batch: self.moments(batch), world, log.say
            )
            self.rows, statistics = latent_cache.CachedLatents(data, made), made.statistics()
        recipe.choose_statistics(r, autoencoder, statistics, log.say)

    @torch.no_grad()
    def moments(self, batch: dict) -> tuple[Tensor, Tensor | None]:
        with autocast(self.device, self.dtype):
            mean, logvar = self.autoencoder.moments(loader.images(batch, self.device))
        return mean.float(), None if logvar is None else logvar.float()

    def __call__(self, batch: dict, step: int, positions: range) -> tuple[Tensor, dict]:
        """A posterior sample z [B, C, h, w], drawn anew at every step, and the fields that the conditions read."""
        for entry in batch["bad"]:
            self.bad.add(*entry)
        if "mean" in batch:
            mean, logvar = (batch[name].to(self.device) if name in batch else None for name in ("mean", "logvar"))
        else:
            mean, logvar = self.moments(batch)
        noise = keyed.normal(keyed.keys(self.seed, step, positions, "posterior", self.device), mean.shape[1:])
        return self.autoencoder.normalise(mean, logvar, noise), self.fields(batch)

    def fields(self, batch: dict) -> dict:
        fields = {name: x.to(self.device) for name, x in batch.items() if isinstance(x, Tensor)}
        if self.tokenizer is not None:
            fields["tokens"] = self.tokenizer.encode(batch["caption"]).to(self.device)
        return fields


class Watch:
    """Looks at held-out data while the run trains: the loss, the text gap, and fixed prompts drawn from fixed noise."""

    ITEMS, PICTURES = 256, 16

    def __init__(self, r, world, latents: Latents, held_out, folder: Path, log: Log) -> None:
        self.r, self.world, self.latents, self.folder, self.log = r, world, latents, folder, log
        self.batches = list(loader.in_order(held_out, range(min(self.ITEMS, len(held_out))), 64))
        captions = [c for b in self.batches for c in b.get("caption", [])]
        self.prompts = list(r.preview) or captions[: self.PICTURES] or [""]

    @torch.no_grad()
    def validate(self, model: LatentDiffusion, step: int) -> None:
        """val_loss, and text_gap: the loss with the captions of others minus the loss with the true ones."""
        gaps, losses = [], []
        for i, batch in enumerate(self.batches):
            count = len(batch["index"])
            z, fields = self.latents(batch, -1, range(i * 64, i * 64 + count))
            keys = keyed.keys(self.r.train.seed, -1, range(i * 64, i * 64 + count), "validation", z.device)
            t, eps = model.draw_timesteps(keys), keyed.normal(keys, z.shape[1:])
            shown = [torch.zeros(count, dtype=torch.bool, device=z.device) for _ in model.conditioner.parts]
            with autocast(z.device, self.latents.dtype):
                losses.append(model(z, fields, t, eps, shown))
                if "tokens" in fields:
                    others = fields | {"tokens": fields["tokens"].roll(1, dims=0)}
                    gaps.append(model(z, others, t, eps, shown) - losses[-1])
        if not losses:
            return
        values = {"val_loss": torch.cat(losses).mean().item()}
        if gaps:
            values["text_gap"] = torch.cat(gaps).mean().item()
        self.log.write(step, **values)
        self.log.say(f"step {step}: " + "  ".join(f"{name} {value:.4f}" for name, value in values.items()))

    @torch.no_grad()
    def draw(self, model: LatentDiffusion, step: int) -> None:
        """samples/<step>.png: the preview prompts, or as many unprompted pictures; from the same noise every time."""
        if not self.world.is_main:
            return
        count, fields = self.PICTURES, {}
        if self.latents.tokenizer is not None:
            count = len(self.prompts)
            fields["tokens"] = self.latents.tokenizer.encode(self.prompts).to(self.world.device)
        elif model.conditioner.parts:
            if not self.batches:
                return
            fields = {name: x[:count] for name, x in self.latents.fields(self.batches[0]).items()}
            count = len(next(iter(fields.values())))
        height, width = recipe.size_of(self.r)
        factor = self.latents.autoencoder.factor
        shape = (self.latents.autoencoder.z_channels, height // factor, width // factor)
        with autocast(self.world.device, self.latents.dtype):
            for z in model.draw(fields, list(range(count)), shape, self.r.sampling):
                pass
            x = self.latents.autoencoder.decode(z)
        pictures.save_grid(x, self.folder / "samples" / f"{step:08d}.png", columns=8 if count > 8 else 4)


def describe(r, world, folder, data, held_out, autoencoder, model, first) -> str:
    """One screen: what will happen."""
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    height, width = recipe.size_of(r)
    latent = f"{autoencoder.z_channels} x {height // autoencoder.factor} x {width // autoencoder.factor}"
    return plan({
        "run": f"{folder}" + (f", resumed at step {first}" if first else ""),
        "data": f"{len(data)} to train on, {len(held_out)} held out, {height} x {width}",
        "latent": f"{latent} (f = {autoencoder.factor}), autoencoder {r.autoencoder.path}",
        "parameters": ", ".join(f"{name} {size:,}" for name, size in sizes.items() if size),
        "batch": f"{r.train.batch_size} over {world.size} rank(s) x {r.train.accumulate} piece(s)",
        "rate": f"{r.train.lr:g} after {r.train.warmup} steps, {r.train.schedule}",
        "steps": f"{r.train.steps}, a checkpoint every {r.train.checkpoint_every}",
        "objective": f"{r.objective.prediction} on {r.schedule.kind}",
        "device": f"{world.device}, {str(precision(r.train.precision, world.device)).removeprefix('torch.')}, "
                  f"{torch.get_num_threads()} threads",
    })  # fmt: skip


if __name__ == "__main__":
    cli.run(main)
