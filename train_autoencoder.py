"""Stage one: train an autoencoder on pictures.

    python train_autoencoder.py [RECIPE.py] [field=value ...] [--overfit N] [--report-to tensorboard|wandb]
    torchrun --nproc_per_node=8 train_autoencoder.py RECIPE.py ...

RECIPE.py      what to train (default: recipes/autoencoder/demo.py); RECIPE.py --help lists every field of it
field=value    changes a field by its dotted path:  train.lr=5e-5  data.path=my/pictures  autoencoder.bottleneck=VQ
name=NAME      the run's folder, runs/NAME (LATENTDIFF_RUNS changes the root); a run that exists is resumed
--overfit N    train on N pictures only: a first check that anything is right
"""

from latentdiff import cli

cli.answer_help(__doc__)

from pathlib import Path

import torch
from torch import Tensor, nn

from latentdiff import keyed, recipe
from latentdiff.autoencoder import bottleneck, discriminator, loss, perceptual
from latentdiff.autoencoder.autoencoder import Autoencoder, Reconstruction
from latentdiff.autoencoder.bottleneck import VQ
from latentdiff.config import UserError, hash_of
from latentdiff.data import loader
from latentdiff.data.picture import BadList
from latentdiff.metrics.reconstruction import psnr, ssim
from latentdiff.recipe import AutoencoderRecipe
from latentdiff.training import checkpoint, optim, pictures, run
from latentdiff.training.ema import EMA
from latentdiff.training.log import Log, plan
from latentdiff.training.world import World, autocast, precision, start


def main(words: list[str]) -> None:
    r, report_to = cli.training_recipe(words, AutoencoderRecipe, "recipes/autoencoder/demo.py")
    if not r.autoencoder.channel_mult:
        raise UserError("autoencoder.channel_mult is empty: pixel space has no first stage to train")
    world = start(r.train.device, deterministic=r.train.deterministic)
    data, held_out = recipe.open_data(r, "train"), recipe.open_data(r, "val")
    micro = loader.micro_batches(world.rank, world.size, r.train.batch_size, r.train.accumulate)
    distance = perceptual.build(r.loss.perceptual)
    folder, newest = run.open_run(r, world)
    tensors, state = checkpoint.load(newest) if newest else ({}, {"step": 0})
    log = Log(folder, world, state["step"], r.train, report_to)

    model = world.place(recipe.build_autoencoder(r))
    critic = Critic(r, world)
    ema = EMA(model, r.train.ema)
    optimizer = optim.adamw(model, r.train)
    scaler = optim.fp16_scaler(r.train, world.device)
    health = Codes(r, world, model, ema, optimizer)
    if newest:
        model.load_state_dict(tensors["model"])
        ema.model.load_state_dict(tensors["ema"])
        optim.load_state(optimizer, scaler, tensors["optimizer"], state)
        critic.load(tensors)
        health.load(tensors)
    log.say(describe(r, world, folder, data, held_out, model, critic.network, state["step"]))
    distance = None if distance is None else distance.to(world.device)
    watch = Watch(r, world, held_out, distance, folder, log)
    bad = BadList(folder / "bad_pictures.jsonl", len(data), getattr(r.data, "max_bad", 1.0))
    run.begin(folder, r, world)
    log.start()
    first = state["step"]
    train(
        r, world, model, critic, ema, optimizer, scaler, distance, health, data, watch, bad, log, folder, first, micro
    )


def train(
    r, world, model, critic, ema, optimizer, scaler, distance, health, data, watch, bad, log, folder, first, micro
) -> None:
    """The loop. `micro` holds the positions in the global batch that this rank computes, piece by piece."""
    t, stop, dtype = r.train, run.Stop(), precision(r.train.precision, world.device)
    parallel = world.parallel(model, broadcast_buffers=False)
    stream = loader.batches(data, t.seed, t.batch_size, micro, first, t.steps, t.workers)
    for step in range(first, t.steps):
        weight = critic.weight_at(step)
        for positions in micro:
            batch = next(stream)
            for entry in batch["bad"]:
                bad.add(*entry)
            x = loader.images(batch, world.device)
            noise = keyed.normal(
                keyed.keys(t.seed, step, positions, "posterior", x.device),
                (model.z_channels, *(side // model.factor for side in x.shape[2:])),
            )
            with world.no_sync(parallel, positions is not micro[-1]):
                with autocast(x.device, dtype):
                    out = parallel(x, noise)
                    y = out.y.detach().requires_grad_()
                    terms = loss.reconstruction_loss(r.loss, x, y, distance, model.quantize.reduction)
                    held = model.quantize.loss(out.bottleneck)
                    g = critic.generator_loss(y) if weight else None
                scale = optim.scale(scaler) / len(micro)
                adaptive = loss.backward(out, held, y, terms["nll"], g, weight, model.last_layer, scale, world.mean)
            critic.learn(x, y.detach(), step, positions is not micro[-1], len(micro), log)
            health.count(out)
            parts = {
                name: term.mean() for name, term in out.bottleneck.items() if name in ("kl", "codebook", "commitment")
            }
            log.add(**terms, **parts, **({} if g is None else {"g": g, "adaptive": adaptive}))
        lr = optim.rate(t, step)
        norm = optim.step(optimizer, t, lr, scaler)
        critic.step(lr)
        ema.update(step, norm)
        health.revive(step, log)
        log.add(grad_norm=norm, skipped=(~torch.isfinite(norm)).float())
        log.report(step + 1, lr=lr, disc_weight=weight)

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
                parts |= critic.tensors() | health.tensors()
                checkpoint.save(folder / "checkpoints", done, parts, optim.state(scaler), t.keep)
        if leave:
            log.say(f"stopped after step {done}; start again with the same command to go on")
            return
    finish(r, world, ema.model, data, log, folder)


def finish(r: AutoencoderRecipe, world: World, model: Autoencoder, data, log: Log, folder: Path) -> None:
    """Measure the latents over the whole training set and leave the averaged weights, normalised."""
    shift, scale = statistics(r, world, model, data)
    model.set_statistics(shift, scale)
    log.write(r.train.steps, latent_scale=scale.mean().item())
    deviations = ", ".join(f"{1 / s:.3f}" for s in scale.flatten().tolist())
    log.say(f"latents: standard deviation {deviations}, now normalised to 1")
    if world.is_main:
        about = {
            "latentdiff.recipe": hash_of(r),
            "latentdiff.step": str(r.train.steps),
            "latentdiff.autoencoder": model.weights_hash(),
        }
        checkpoint.write_tensors(folder / "model.safetensors", model.state_dict(), about)
        names = ("nll", "psnr", "lpips", "kl", "perplexity", "disc_loss", "grad_norm")
        pictures.curve(folder / "metrics.jsonl", folder / "curve.png", names)
    log.close()
    log.say(f"done: {folder}  (python train_diffusion.py RECIPE.py autoencoder={folder})")


@torch.no_grad()
def statistics(r: AutoencoderRecipe, world: World, model: Autoencoder, data) -> tuple[Tensor, Tensor]:
    """Shift and scale [C] that normalise the latents: Var(z) = Var(mean) + E[exp(logvar)], over all pictures."""
    sums = torch.zeros(4, model.z_channels, dtype=torch.float64, device=world.device)  # n, sum, squares, variances
    if isinstance(r.autoencoder.bottleneck, VQ):  # the codebook's scale is the latent's own; the paper leaves it
        return torch.zeros(model.z_channels), torch.ones(model.z_channels)
    for batch in loader.in_order(data, world.share_of(len(data)), 4 * r.train.batch_size):
        with autocast(world.device, precision(r.train.precision, world.device)):
            mean, logvar = (
                None if m is None else m.double() for m in model.moments(loader.images(batch, world.device))
            )
        variances = torch.zeros_like(mean) if logvar is None else logvar.exp()
        sums += torch.stack([m.sum((0, 2, 3)) for m in (torch.ones_like(mean), mean, mean**2, variances)])
    n, total, squares, variances = world.sum(sums)
    variance = squares / n - (total / n) ** 2 + variances / n
    if r.statistics == "channel":
        return total / n, variance.rsqrt()
    return torch.zeros(model.z_channels), variance.mean().rsqrt().expand(model.z_channels)


class Critic:
    """The discriminator with its optimiser; without one, every method does nothing."""

    def __init__(self, r: AutoencoderRecipe, world: World) -> None:
        self.config, self.train, self.world, self.network = r.discriminator, r.train, world, None
        if self.config is None or self.config.weight == 0:
            return
        torch.manual_seed(r.train.seed + 1)
        network = discriminator.Discriminator(self.config)
        if self.config.norm == "batch" and world.size > 1 and world.device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        self.network = world.place(network)
        self.parallel = world.parallel(self.network, broadcast_buffers=self.config.norm == "batch")
        self.optimizer, self.learned = optim.adamw(self.network, r.train), False
        self.dtype = precision(r.train.precision, world.device)
        discriminator.plan(self.config, r.train.steps)  # refused now rather than at its first step

    def weight_at(self, step: int) -> float:
        return discriminator.weight_at(self.config, step, self.train.steps) if self.network is not None else 0.0

    def generator_loss(self, y: Tensor) -> Tensor:
        """-E D(y) with D frozen: its parameters take no part, so nothing of this step is left in it."""
        self.network.requires_grad_(False)
        with self.world.no_sync(self.parallel, True):
            g = discriminator.generator_loss(self.parallel(y))
        self.network.requires_grad_(True)
        return g

    def learn(self, x: Tensor, y: Tensor, step: int, more: bool, pieces: int, log: Log) -> None:
        """The backward pass of D's own loss, real and fake one after the other, once it learns."""
        if self.network is None or not discriminator.learns_at(self.config, step, self.train.steps):
            return
        with self.world.no_sync(self.parallel, more):
            with autocast(x.device, self.dtype):
                real, fake = self.parallel(torch.cat([x, y])).chunk(2) if self.config.norm == "group" else (
                    self.parallel(x), self.parallel(y))  # fmt: skip
                disc_loss = discriminator.LOSSES[self.config.loss](real, fake)
            (disc_loss / pieces).backward()
        self.learned = True
        log.add(disc_loss=disc_loss, logits_real=real.mean(), logits_fake=fake.mean(),
                disc_right=((real > 0).float().mean() + (fake < 0).float().mean()) / 2)  # fmt: skip

    def step(self, lr: float) -> None:
        if self.network is not None and self.learned:
            optim.step(self.optimizer, self.train, lr)
            self.learned = False

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        if self.network is None:
            return {}
        return {
            "discriminator": self.network.state_dict(),
            "discriminator_optimizer": optim.state_tensors(self.optimizer),
        }

    def load(self, tensors: dict[str, dict[str, Tensor]]) -> None:
        if self.network is not None:
            self.network.load_state_dict(tensors["discriminator"])
            optim.load_state(self.optimizer, None, tensors["discriminator_optimizer"], {})


class Codes:
    """The health of a VQ codebook: usage and perplexity over all ranks, and new life for codes that nobody uses."""

    def __init__(self, r: AutoencoderRecipe, world: World, model: Autoencoder, ema: EMA, optimizer) -> None:
        self.on = isinstance(r.autoencoder.bottleneck, VQ)
        if not self.on:
            return
        self.seed, self.world, self.codebook, self.optimizer = r.train.seed, world, model.quantize, optimizer
        self.average, self.size = ema.model.quantize, r.autoencoder.bottleneck.codebook_size
        self.idle = torch.zeros(self.size, dtype=torch.int64, device=world.device)
        self.counts = torch.zeros_like(self.idle)

    def count(self, out: Reconstruction) -> None:
        if self.on:
            self.counts += bottleneck.count(out.bottleneck["codes"], self.size)
            self.latent = out.bottleneck["latent"]

    def revive(self, step: int, log: Log) -> None:
        """Dead codes become encoder outputs, equally on all ranks; their moments start anew."""
        if not self.on:
            return
        counts = self.world.sum(self.counts)
        usage, perplexity = bottleneck.usage(counts)
        log.add(code_usage=usage, perplexity=perplexity)
        latent = self.world.sum(self.latent if self.world.is_main else torch.zeros_like(self.latent))  # rank 0's
        dead = bottleneck.revive(self.codebook, self.idle, counts, latent, self.seed, step)
        row = dead[:, None].to(latent.dtype)
        for moment in self.optimizer.state[self.codebook.embedding.weight].values():
            if moment.ndim == 2:
                moment.mul_(1 - row)
        average = self.average.embedding.weight
        average.copy_(torch.where(dead[:, None], self.codebook.embedding.weight, average))
        self.counts.zero_()

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        return {"codes": {"idle": self.idle}} if self.on else {}

    def load(self, tensors: dict[str, dict[str, Tensor]]) -> None:
        if self.on:
            self.idle.copy_(tensors["codes"]["idle"])


class Watch:
    """Looks at held-out pictures while the run trains: PSNR, SSIM, LPIPS, reconstructions, and the run's health."""

    ITEMS, PICTURES = 256, 8

    def __init__(self, r, world: World, held_out, distance, folder: Path, log: Log) -> None:
        self.r, self.world, self.folder, self.log = r, world, folder, log
        self.lpips = distance if isinstance(distance, perceptual.LPIPSDistance) else None
        self.batches = list(loader.in_order(held_out, range(min(self.ITEMS, len(held_out))), 32))
        self.best = -1.0

    @torch.no_grad()
    def reconstruct(self, model: Autoencoder, batch: dict) -> tuple[Tensor, Tensor]:
        x = loader.images(batch, self.world.device)
        with autocast(x.device, precision(self.r.train.precision, x.device)):
            return x, model.decode(model.encode(x)).clamp(-1, 1)

    @torch.no_grad()
    def validate(self, model: Autoencoder, step: int) -> None:
        scores: dict[str, list[Tensor]] = {}
        for batch in self.batches:
            x, y = self.reconstruct(model, batch)
            found = {"psnr": psnr(x, y), "ssim": ssim(x, y)}
            if self.lpips is not None:
                found["lpips"] = self.lpips(y, x).flatten()
            for name, value in found.items():
                scores.setdefault(name, []).append(value)
        values = {name: torch.cat(value).mean().item() for name, value in scores.items()}
        if values:
            self.log.write(step, **values)
            self.log.say(f"step {step}: " + "  ".join(f"{name} {value:.4g}" for name, value in values.items()))
            self.warn(values["psnr"])

    def warn(self, now: float) -> None:
        """Plain words when the pictures get worse."""
        if now < self.best - 3:
            self.log.say(
                f"WARNING: PSNR fell from {self.best:.1f} to {now:.1f} dB. If the discriminator has just begun to "
                f"weigh, give it a longer discriminator.ramp or a smaller weight; otherwise lower train.lr"
            )
        self.best = max(self.best, now)

    def draw(self, model: Autoencoder, step: int) -> None:
        """samples/<step>.png: held-out pictures above their reconstructions."""
        if self.world.is_main and self.batches:
            x, y = self.reconstruct(model, self.batches[0])
            count = min(self.PICTURES, len(x))
            pictures.save_grid(torch.cat([x[:count], y[:count]]), self.folder / "samples" / f"{step:08d}.png", count)


def describe(r, world, folder, data, held_out, model, critic, first) -> str:
    """One screen: what will happen."""
    height, width = recipe.size_of(r)
    latent = f"{model.z_channels} x {height // model.factor} x {width // model.factor}"
    names = {"encoder": model.encoder, "decoder": model.decoder, "discriminator": critic}
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in names.items() if part is not None}
    adversary = "none"
    if critic is not None:
        learns, starts, ramp = discriminator.plan(r.discriminator, r.train.steps)
        adversary = f"learns from step {learns:.0f}, weighs from {starts:.0f}, fully after {ramp:.0f} more"
    return plan({
        "run": f"{folder}" + (f", resumed at step {first}" if first else ""),
        "data": f"{len(data)} to train on, {len(held_out)} held out, {height} x {width}",
        "latent": f"{latent} (f = {model.factor}), {type(r.autoencoder.bottleneck).__name__}",
        "parameters": ", ".join(f"{name} {size:,}" for name, size in sizes.items()),
        "loss": f"{r.loss.l1:g} L1 + {r.loss.l2:g} L2 + {type(r.loss.perceptual).__name__}",
        "adversary": adversary,
        "batch": f"{r.train.batch_size} over {world.size} rank(s) x {r.train.accumulate} piece(s)",
        "rate": f"{r.train.lr:g} after {r.train.warmup} steps, {r.train.schedule}",
        "steps": f"{r.train.steps}, a checkpoint every {r.train.checkpoint_every}",
        "device": f"{world.device}, {str(precision(r.train.precision, world.device)).removeprefix('torch.')}, "
                  f"{torch.get_num_threads()} threads",
    })  # fmt: skip


if __name__ == "__main__":
    cli.run(main)
