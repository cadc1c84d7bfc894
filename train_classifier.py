"""Train a classifier of noisy latents, which guides a diffusion run that knows no classes.

    python train_classifier.py [RECIPE.py] [field=value ...] [--overfit N] [--report-to tensorboard|wandb]

RECIPE.py      what to train (default: recipes/classifier/shapes.py); RECIPE.py --help lists every field of it
field=value    changes a field by its dotted path:  train.lr=5e-5  conditions.0.classes=10
autoencoder=   the frozen first stage, the same as that of the run to be guided
name=NAME      the run's folder, runs/NAME; a run that exists is resumed

python sample.py --run RUN --classifier NAME --class C --classifier-scale 1
"""

from latentdiff import cli

cli.answer_help(__doc__)

import torch
import torch.nn.functional as F
from torch import Tensor

from latentdiff import build, load, recipe, rng
from latentdiff.classifier import ClassifierRecipe, build_classifier
from latentdiff.config import UserError, hash_of
from latentdiff.data import loader
from latentdiff.diffusion.classifier import Classifier
from latentdiff.diffusion.schedule import Schedule
from latentdiff.stage_two.batches import BatchEncoder
from latentdiff.training import checkpoint, optim, run_dir, run_summary
from latentdiff.training.distributed import World, start
from latentdiff.training.log import Log
from latentdiff.training.state import TrainState

CURVES = ("loss", "right", "val_loss", "val_right_low_noise")


def main(words: list[str]) -> None:
    r, report_to = cli.training_recipe(words, ClassifierRecipe, "recipes/classifier/shapes.py")
    if r.train.compile:
        raise UserError("train.compile is true, but only a diffusion run's U-Net is compiled; leave it out")
    world = start(r.train.device, deterministic=r.train.deterministic, timeout=r.train.timeout)
    data, held_out = recipe.open_data(r, "train"), recipe.open_data(r, "val")
    loader.micro_batches(world.rank, world.size, r.train.batch_size, r.train.grad_accum_steps)  # refused now, if at all
    folder, newest = run_dir.open_run(r, world)
    tensors, state = checkpoint.load(newest) if newest else ({}, {"step": 0})
    log = Log(folder, world, state["step"], r.train, report_to)

    autoencoder, first_stage = load.open_autoencoder(r, folder, world, log.say)
    learner = TrainState(world.place(build_classifier(r, autoencoder), plain=True), r.train, world)
    if newest:
        learner.load(tensors, state)
        tensors.clear()  # its files would stay mapped, in every rank, as long as the training lasts
    parts, latent = {"classifier": learner.model}, f"autoencoder {r.autoencoder.path}"
    log.say(run_summary.opening(r, log, data, held_out, autoencoder, parts, latent=latent))

    latents = BatchEncoder(r, world, autoencoder, None, data, log)
    run_dir.begin(folder, r, world, lambda: build.keep_parts(folder, autoencoder, first_stage, None, data))
    log.start()
    with run_dir.Stop() as stop:
        train(r, world, learner, latents, held_out, stop, log)
    about = {"latentdiff.recipe": hash_of(r), "latentdiff.step": str(r.train.steps)}
    run_dir.finish(log, learner.ema.model.state_dict(), about, CURVES)
    log.say(f"done: {folder}  (python sample.py --run RUN --classifier {folder} --class C)")


def train(r, world: World, learner: TrainState, latents: BatchEncoder, held_out, stop: run_dir.Stop, log: Log) -> None:
    """The loop. `micro`: the positions in the batch that this rank computes, by pieces."""
    t, schedule = r.train, Schedule(r.schedule)
    parallel = world.parallel(learner.model)
    micro = loader.micro_batches(world.rank, world.size, t.batch_size, t.grad_accum_steps)
    stream = loader.batches(latents.rows, t.seed, t.batch_size, micro, log.first, t.steps, t.num_workers)
    for step in range(log.first, t.steps):
        for positions in micro:
            z, batch = latents(next(stream), step, positions)
            timesteps = rng.uniform(rng.keys(t.seed, step, positions, "t", z.device)) * (schedule.T - 1)
            eps = rng.normal(rng.keys(t.seed, step, positions, "eps", z.device), z.shape[1:])
            rng.reseed(t.seed, step, positions.start, "dropout")
            with world.no_sync(parallel, positions is not micro[-1]):
                with learner.autocast():
                    logits = parallel(schedule.diffuse(z, eps, timesteps), timesteps).float()
                loss = F.cross_entropy(logits, batch["label"])
                optim.backward(loss / len(micro), learner.scaler)
            log.add(loss=loss, right=(logits.argmax(1) == batch["label"]).float().mean())
        done = step + 1
        log.add(**learner.step(step))
        log.report(done, lr=optim.rate(t, step))

        leave = stop.wanted(world)
        with log.aside():
            if t.due(done, t.val_every):
                log.validation(done, validate(learner.ema.model, r, latents, held_out, schedule))
            if world.is_main and (leave or t.due(done, t.checkpoint_every)):
                checkpoint.save(
                    log.folder / "checkpoints", done, learner.tensors(), learner.state(), t.keep_checkpoints
                )
        if leave:
            stop.leave(log, done, leave)


@torch.no_grad()
def validate(model: Classifier, r, latents: BatchEncoder, held_out, schedule: Schedule, items: int = 256) -> dict:
    """Loss and share right of held-out pictures under every noise, and share right in the least noisy quarter."""
    found: list[Tensor] = []
    rows = recipe.with_fields(r, held_out)
    for i, batch in enumerate(loader.sequential_batches(rows, range(min(items, len(rows))), 32)):
        z, label = latents.autoencoder.encode(loader.images(batch, latents.device)), latents.fields(batch)["label"]
        t = torch.linspace(0, schedule.T - 1, len(z), device=z.device)
        eps = rng.normal(rng.keys(r.train.seed, i, range(len(z)), "validation", z.device), z.shape[1:])
        logits = model(schedule.diffuse(z, eps, t), t).float()
        right = (logits.argmax(1) == label).float()
        found.append(torch.stack([F.cross_entropy(logits, label), right.mean(), right[: -(-len(z) // 4)].mean()]))
    if not found:
        return {}
    loss, right, low = torch.stack(found).mean(0).tolist()
    return {"val_loss": loss, "val_right": right, "val_right_low_noise": low}


if __name__ == "__main__":
    cli.run(main)
