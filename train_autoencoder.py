"""Stage one: train an autoencoder on images.

    python train_autoencoder.py [RECIPE.py] [field=value ...] [--overfit N] [--report-to tensorboard|wandb]
    torchrun --nproc_per_node=8 train_autoencoder.py RECIPE.py ...

RECIPE.py      what to train (default: recipes/autoencoder/demo.py); RECIPE.py --help lists every field of it
field=value    sets a field by its dotted path:  train.lr=5e-5  data.path=my/images  autoencoder.bottleneck=VQ
name=NAME      the run's folder, runs/NAME (LATENTDIFF_RUNS changes the root); an existing run is resumed
--overfit N    train on N images only, as a first check of data and settings
"""

from latentdiff import cli

cli.answer_help(__doc__)

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from latentdiff import build, load, recipe, rng
from latentdiff.autoencoder import bottleneck, equivariance, loss, perceptual
from latentdiff.autoencoder.autoencoder import Autoencoder
from latentdiff.autoencoder.bottleneck import VQConfig
from latentdiff.config import UserError, short_name
from latentdiff.data import loader
from latentdiff.recipe import AutoencoderRecipe
from latentdiff.stage_one.adversarial import Adversarial
from latentdiff.stage_one.codebook import CodebookResetter
from latentdiff.stage_one.validation import ReconstructionValidator
from latentdiff.training import checkpoint, optim, run_dir
from latentdiff.training.cuda_graph import ADVICE, CudaGraph
from latentdiff.training.distributed import World, init_distributed
from latentdiff.training.log import Log
from latentdiff.training.precision import autocast, precision
from latentdiff.training.run_summary import run_summary
from latentdiff.training.state import TrainState

CURVES = ("nll", "psnr", "lpips", "kl", "perplexity", "disc_loss", "grad_norm")


class AutoencoderTrainState(NamedTuple):
    """All that trains in stage one; one checkpoint holds the three together."""

    autoencoder: TrainState
    adversarial: Adversarial
    codebook: CodebookResetter

    def save(self, folder: Path) -> None:
        tensors = self.autoencoder.tensors() | self.adversarial.tensors() | self.codebook.tensors()
        self.autoencoder.save(folder, tensors, self.adversarial.state())

    def load(self, path: Path) -> None:
        tensors, scalars = checkpoint.load(path)
        self.autoencoder.load_tensors(tensors, scalars)
        self.adversarial.load(tensors, scalars)
        self.codebook.load(tensors)


def main(argv: list[str]) -> None:
    r, report_to = cli.training_recipe(argv, AutoencoderRecipe, "recipes/autoencoder/demo.py")
    if not r.autoencoder.channel_mult:
        raise UserError("autoencoder.channel_mult is empty: in pixel space there is no first stage to train")
    if r.train.compile:
        raise UserError("train.compile is true, but only the U-Net of stage two is compiled; set it to false")
    world = init_distributed(r.train.device, deterministic=r.train.deterministic, timeout=r.train.timeout)
    train_data, val_data = recipe.open_data(r, "train"), recipe.open_data(r, "val")
    micro_batches = loader.micro_batches(world.rank, world.size, r.train.batch_size, r.train.grad_accum_steps)
    perceptual_distance = perceptual.build(r.loss.perceptual)
    folder, newest = run_dir.open_run(r, world)
    log = Log(folder, world, run_dir.step_of(newest), r.train, report_to)

    model = build.build_autoencoder(r)
    if not newest:
        load.initialize_from(r, model, log.info)
    adversarial = Adversarial(r.discriminator, r.train, world)
    autoencoder = TrainState(world.to_device(model), r.train, world)
    state = AutoencoderTrainState(autoencoder, adversarial, CodebookResetter(autoencoder, r.train.seed, world))
    if perceptual_distance is not None:
        perceptual_distance = world.to_device(perceptual_distance)
    if newest:
        state.load(newest)
    networks, facts = describe(r, state)
    log.info(run_summary(r, log, autoencoder.step, train_data, val_data, r.data.image_size, model, networks, **facts))

    bad_images = recipe.bad_image_list(r, folder, train_data)
    validator = ReconstructionValidator(r, world, val_data, perceptual_distance, bad_images, log)
    run_dir.create_run_dir(folder, r, world, lambda: bad_images.write(train_data.unreadable))
    log.start()
    with run_dir.StopSignal() as stop:
        train(r, world, state, train_data, micro_batches, perceptual_distance, bad_images, validator, stop, log)
    finish(r, world, autoencoder.ema.model, train_data, log)


def train(r, world, state, data, micro_batches, perceptual_distance, bad_images, validator, stop, log) -> None:
    """The training loop. micro_batches: positions of this rank's samples in the global batch, per accumulation step."""
    cfg, (autoencoder, adversarial, codebook) = r.train, state
    model, optimizer, ema = autoencoder.model, autoencoder.optimizer, autoencoder.ema
    ddp = world.ddp(model, broadcast_buffers=False)

    def forward_backward(
        x: Tensor, noise: Tensor, warp, disc_weight: Tensor | None, train_disc: bool, grad_scale: float, last: bool
    ) -> dict[str, Tensor]:  # fmt: skip
        with autoencoder.autocast():
            output, x = ddp(x, noise, warp), warp(x)
            y = output.y.detach().requires_grad_()
            losses = loss.reconstruction_loss(r.loss, x, y, perceptual_distance, model.quantize.reduction)
            bottleneck_loss = model.quantize.loss(output.bottleneck)
            g_loss = None if disc_weight is None else adversarial.generator_loss(y)
        adaptive_weight = loss.backward(
            output, bottleneck_loss, y, losses["nll"], g_loss, disc_weight, model.last_layer, grad_scale,
            world.all_reduce_mean,
        )  # fmt: skip
        metrics = losses | ({} if g_loss is None else {"g_loss": g_loss, "adaptive_weight": adaptive_weight})
        if train_disc:
            metrics |= adversarial.disc_forward_backward(x, y.detach(), not last, 1 / cfg.grad_accum_steps)
        return metrics | codebook.count(output.bottleneck)

    if cfg.cuda_graph:
        forward_backward = CudaGraph(forward_backward, [*model.parameters(), *adversarial.parameters()], ADVICE)
    start = autoencoder.step
    batches = loader.batches(data, cfg.seed, cfg.batch_size, micro_batches, start, cfg.steps, cfg.num_workers)
    for step in range(start, cfg.steps):
        disc_weight, train_disc = adversarial.disc_weight_at(step), adversarial.train_disc_at(step)
        disc_weight_tensor = torch.full((), disc_weight, device=world.device) if disc_weight else None
        for positions in micro_batches:
            batch, last = next(batches), positions is micro_batches[-1]
            bad_images.add(batch["bad"])
            x = loader.images(batch, world.device)  # [B, 3, H, W]
            shape = (model.z_channels, *(side // model.factor for side in x.shape[2:]))
            noise = rng.normal(rng.keys(cfg.seed, step, positions, "posterior", x.device), shape)
            rng.reseed(cfg.seed, step, positions.start, "dropout")
            warp = equivariance.sample_warp(r.loss.equivariance, cfg.seed, step, shape[1:], model.factor)
            with world.no_sync(ddp, not last):  # DDP all-reduces in the last backward
                grad_scale = autoencoder.scaler.get_scale() / cfg.grad_accum_steps
                log.add(**forward_backward(x, noise, warp, disc_weight_tensor, train_disc, grad_scale, last))
        lr = optim.lr_at(cfg, step)
        optim.set_lr(optimizer, lr)
        grad_norm = autoencoder.clip_grad_norm_()  # NaN if a gradient of any rank is not finite: nothing is updated
        optimizer.step()
        ema.update(step, grad_norm)
        optimizer.zero_grad(set_to_none=True)
        autoencoder.end_step()
        log.add(grad_norm=grad_norm, skipped_steps=grad_norm.isnan().float())
        log.add(**adversarial.step(step), **codebook.reset_dead_codes(step))
        validator.diagnostics.check(step + 1, log.report(step + 1, lr=lr, disc_weight=disc_weight))

        signum = stop.requested(world)
        with log.exclude_from_throughput():
            if cfg.due(step + 1, cfg.val_every):
                validator.validate(ema.model, step + 1)
            if cfg.due(step + 1, cfg.sample_every):
                validator.save_samples(ema.model, step + 1)
            if world.is_main and (signum or cfg.due(step + 1, cfg.checkpoint_every)):
                state.save(log.folder)
        if signum:
            stop.exit(log, step + 1, signum)


def finish(r: AutoencoderRecipe, world: World, model: Autoencoder, data, log: Log) -> None:
    """Normalize the latents by their statistics over the whole training set, and write the EMA weights."""
    if isinstance(r.autoencoder.bottleneck, VQConfig):  # as in the paper
        log.info("latents: the scale of the codebook is kept")
    else:
        shift, scale = latent_stats(r, world, model, data)
        model.set_latent_stats(shift, scale)
        deviations = ", ".join(f"{1 / s:.3f}" for s in dict.fromkeys(scale.flatten().tolist()))
        log.info(f"latents: standard deviation {deviations} over the training data, normalized to 1")
    metadata = build.weights_metadata(r, r.train.steps, model.weights_hash())
    run_dir.finish_run(log, model.state_dict(), metadata, CURVES)
    log.info(f"done: {log.folder}  (python train_diffusion.py RECIPE.py autoencoder={log.folder})")


@torch.no_grad()
def latent_stats(r: AutoencoderRecipe, world: World, model: Autoencoder, data) -> tuple[Tensor, Tensor]:
    """Shift and scale [C] that normalize the latents: Var(z) = Var(mean) + E[exp(logvar)], over all images."""
    sums = torch.zeros(4, model.z_channels, dtype=torch.float64, device=world.device)
    for batch in loader.sequential_batches(data, world.shard(len(data)), 4 * r.train.batch_size):
        with autocast(world.device, precision(r.train.precision, world.device)):
            moments = model.moments(loader.images(batch, world.device))
        sums += bottleneck.moment_sums(*moments)
    mean, variance = bottleneck.latent_stats(world.all_reduce_sum(sums))
    if r.latent_norm == "channel":
        return mean, variance.rsqrt()
    return torch.zeros(model.z_channels), variance.mean().rsqrt().expand(model.z_channels)


def describe(r: AutoencoderRecipe, state: AutoencoderTrainState) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The networks and facts of the run summary that only stage one has."""
    model, network, schedule = state.autoencoder.model, state.adversarial.network, "none"
    networks = {"encoder": model.encoder, "decoder": model.decoder}
    if network is not None:
        networks["discriminator"] = network
        d = state.adversarial
        schedule = f"trains from step {d.train_from:.0f}; adversarial loss from step {d.start:.0f}, ramp {d.ramp:.0f}"
    terms = [f"{weight:g} {name}" for name, weight in (("L1", r.loss.l1), ("L2", r.loss.l2)) if weight]
    if r.loss.perceptual is not None:
        terms.append(f"{r.loss.perceptual.weight:g} {short_name(type(r.loss.perceptual))}")
    latent = short_name(type(r.autoencoder.bottleneck))
    return networks, {"latent": latent, "loss": " + ".join(terms), "discriminator": schedule}


if __name__ == "__main__":
    cli.run(main)
