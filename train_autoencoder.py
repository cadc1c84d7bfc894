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

from typing import NamedTuple

import torch
from torch import Tensor, nn

from latentdiff import load, recipe, rng
from latentdiff.autoencoder import discriminator, equivariance, loss, perceptual
from latentdiff.autoencoder.autoencoder import Autoencoder
from latentdiff.autoencoder.bottleneck import VQConfig
from latentdiff.build import build_autoencoder, weights_metadata
from latentdiff.config import UserError
from latentdiff.data import loader
from latentdiff.recipe import AutoencoderRecipe
from latentdiff.stage_one.adversarial import Adversarial
from latentdiff.stage_one.codebook import CodebookResetter
from latentdiff.stage_one.validation import ReconstructionValidator
from latentdiff.training import checkpoint, optim, run_dir, run_summary
from latentdiff.training.cuda_graph import CudaGraph
from latentdiff.training.distributed import World, start
from latentdiff.training.log import Log
from latentdiff.training.precision import autocast, precision
from latentdiff.training.state import ADVICE, TrainState

CURVES = ("nll", "psnr", "lpips", "kl", "perplexity", "disc_loss", "grad_norm")


class Parts(NamedTuple):
    """What trains, and what judges it."""

    learner: TrainState  # the autoencoder
    critic: Adversarial
    codes: CodebookResetter
    distance: nn.Module | None  # the perceptual one

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        return self.learner.tensors() | self.critic.tensors() | self.codes.tensors()

    def state(self) -> dict:
        return self.learner.state() | self.critic.state()

    def load(self, tensors: dict[str, dict[str, Tensor]], state: dict) -> None:
        self.learner.load(tensors, state)
        self.critic.load(tensors, state)
        self.codes.load(tensors)


def main(words: list[str]) -> None:
    r, report_to = cli.training_recipe(words, AutoencoderRecipe, "recipes/autoencoder/demo.py")
    if not r.autoencoder.channel_mult:
        raise UserError("autoencoder.channel_mult is empty: pixel space has no first stage to train")
    if r.train.compile:
        raise UserError("train.compile is true, but only stage two's U-Net is compiled; leave it out")
    world = start(r.train.device, deterministic=r.train.deterministic, timeout=r.train.timeout)
    data, held_out = recipe.open_data(r, "train"), recipe.open_data(r, "val")
    loader.micro_batches(world.rank, world.size, r.train.batch_size, r.train.grad_accum_steps)  # refused now, if at all
    distance = perceptual.build(r.loss.perceptual)
    folder, newest = run_dir.open_run(r, world)
    tensors, state = checkpoint.load(newest) if newest else ({}, {"step": 0})
    log = Log(folder, world, state["step"], r.train, report_to)

    model = build_autoencoder(r)
    if not newest:
        load.start_from(r, model, log.say)
    parts = build(r, world, model, distance)
    if newest:
        parts.load(tensors, state)
        tensors.clear()  # its files would stay mapped, in every rank, as long as the training lasts
    log.say(describe(r, log, data, held_out, parts))
    bad = recipe.bad_list(r, folder, data)
    watch = ReconstructionValidator(r, world, held_out, parts.distance, bad, log)
    run_dir.begin(folder, r, world, lambda: bad.enter(getattr(data, "bad", [])))
    log.start()
    with run_dir.Stop() as stop:
        train(r, world, parts, data, watch, stop, log)
    finish(r, world, parts.learner.ema.model, data, log)


def build(r: AutoencoderRecipe, world: World, model: Autoencoder, distance: nn.Module | None) -> Parts:
    critic = Adversarial(r.discriminator, r.train, world)
    learner = TrainState(world.place(model), r.train, world)
    codes = CodebookResetter(learner, r.train.seed, world)
    return Parts(learner, critic, codes, None if distance is None else world.place(distance))


def train(r, world: World, parts: Parts, data, watch: ReconstructionValidator, stop: run_dir.Stop, log: Log) -> None:
    """The loop. `micro`: the positions in the batch that this rank computes, by pieces."""
    (learner, critic, codes, distance), t = parts, r.train
    model, parallel = learner.model, world.parallel(learner.model, broadcast_buffers=False)

    def walk(x: Tensor, noise: Tensor, warp, weight: Tensor | None, learns: bool, scale: float, more: bool) -> dict:
        with learner.autocast():
            out, x = parallel(x, noise, warp), warp(x)
            y = out.y.detach().requires_grad_()
            terms = loss.reconstruction_loss(r.loss, x, y, distance, model.quantize.reduction)
            held = model.quantize.loss(out.bottleneck)
            g = None if weight is None else critic.generator_loss(y)
        adaptive = loss.backward(out, held, y, terms["nll"], g, weight, model.last_layer, scale, world.mean)
        terms = terms | ({} if g is None else {"g": g, "adaptive": adaptive}) | codes.count(out.bottleneck)
        return terms | (critic.learn(x, y.detach(), more, 1 / t.grad_accum_steps) if learns else {})

    walk = CudaGraph(walk, [*model.parameters(), *critic.parameters()], ADVICE) if t.cuda_graph else walk
    micro = loader.micro_batches(world.rank, world.size, t.batch_size, t.grad_accum_steps)
    stream = loader.batches(data, t.seed, t.batch_size, micro, log.first, t.steps, t.num_workers)
    for step in range(log.first, t.steps):
        weight, learns = critic.weight_at(step), critic.learns_at(step)
        weighed = torch.full((), weight, device=world.device) if weight else None
        for positions in micro:
            batch, more = next(stream), positions is not micro[-1]
            watch.bad.note(batch["bad"])
            x = loader.images(batch, world.device)
            shape = (model.z_channels, *(side // model.factor for side in x.shape[2:]))
            noise = rng.normal(rng.keys(t.seed, step, positions, "posterior", x.device), shape)
            rng.reseed(t.seed, step, positions.start, "dropout")
            warp = equivariance.draw(r.loss.equivariance, t.seed, step, shape[1:], model.factor)
            with world.no_sync(parallel, more):
                log.add(**walk(x, noise, warp, weighed, learns, learner.scale / len(micro), more))
        log.add(**learner.step(step))
        log.add(**critic.step(step))
        log.add(**codes.revive(step))
        done = step + 1
        watch.health.look(done, log.report(done, lr=optim.rate(t, step), disc_weight=weight))

        leave = stop.wanted(world)
        with log.aside():
            if t.due(done, t.val_every):
                watch.validate(learner.ema.model, done)
            if t.due(done, t.sample_every):
                watch.draw(learner.ema.model, done)
            if world.is_main and (leave or t.due(done, t.checkpoint_every)):
                checkpoint.save(log.folder / "checkpoints", done, parts.tensors(), parts.state(), t.keep_checkpoints)
                learner.averages.keep(log.folder, done)
        if leave:
            stop.leave(log, done, leave)


def finish(r: AutoencoderRecipe, world: World, model: Autoencoder, data, log: Log) -> None:
    """Measure the latents over the whole training set and leave the averaged weights, normalised."""
    shift, scale = statistics(r, world, model, data)
    model.set_statistics(shift, scale)
    deviations = ", ".join(f"{1 / s:.3f}" for s in dict.fromkeys(scale.flatten().tolist()))
    if isinstance(r.autoencoder.bottleneck, VQConfig):
        log.say("latents: the codebook's own scale is kept")
    else:
        log.say(f"latents: standard deviation {deviations} over the training data, now normalised to 1")
    run_dir.finish(log, model.state_dict(), weights_metadata(r, r.train.steps, model.weights_hash()), CURVES)
    log.say(f"done: {log.folder}  (python train_diffusion.py RECIPE.py autoencoder={log.folder})")


@torch.no_grad()
def statistics(r: AutoencoderRecipe, world: World, model: Autoencoder, data) -> tuple[Tensor, Tensor]:
    """Shift and scale [C] that normalise the latents: Var(z) = Var(mean) + E[exp(logvar)], over all pictures."""
    sums = torch.zeros(4, model.z_channels, dtype=torch.float64, device=world.device)  # n, sum, squares, variances
    if isinstance(r.autoencoder.bottleneck, VQConfig):  # the codebook's scale is the latent's own; the paper leaves it
        return torch.zeros(model.z_channels), torch.ones(model.z_channels)
    for batch in loader.sequential_batches(data, world.share_of(len(data)), 4 * r.train.batch_size):
        with autocast(world.device, precision(r.train.precision, world.device)):
            moments = model.moments(loader.images(batch, world.device))
        mean, logvar = (None if m is None else m.double() for m in moments)
        variances = torch.zeros_like(mean) if logvar is None else logvar.exp()
        sums += torch.stack([m.sum((0, 2, 3)) for m in (torch.ones_like(mean), mean, mean**2, variances)])
    n, total, squares, variances = world.sum(sums)
    variance = squares / n - (total / n) ** 2 + variances / n
    if r.latent_norm == "channel":
        return total / n, variance.rsqrt()
    return torch.zeros(model.z_channels), variance.mean().rsqrt().expand(model.z_channels)


def describe(r: AutoencoderRecipe, log: Log, data, held_out, parts: Parts) -> str:
    """One screen: what will happen."""
    model, critic, adversary = parts.learner.model, parts.critic.network, "none"
    networks = {"encoder": model.encoder, "decoder": model.decoder}
    if critic is not None:
        networks["discriminator"] = critic
        learns, starts, ramp = discriminator.plan(r.discriminator, r.train.steps)
        adversary = f"learns from step {learns:.0f}, weighs from {starts:.0f}, fully after {ramp:.0f} more"
    weights = {"L1": r.loss.l1, "L2": r.loss.l2}
    terms = [f"{weight:g} {name}" for name, weight in weights.items() if weight]
    if r.loss.perceptual is not None:
        terms.append(f"{r.loss.perceptual.weight:g} {type(r.loss.perceptual).__name__}")
    bottleneck = type(r.autoencoder.bottleneck).__name__
    facts = {"latent": bottleneck, "loss": " + ".join(terms), "adversary": adversary}
    return run_summary.opening(r, log, data, held_out, model, networks, **facts)


if __name__ == "__main__":
    cli.run(main)
