"""Train a classifier of noisy latents, for classifier guidance of a diffusion run without class condition.

    python train_classifier.py [RECIPE.py] [field=value ...] [--overfit N] [--report-to tensorboard|wandb]

RECIPE.py      what to train (default: recipes/classifier/shapes.py); RECIPE.py --help lists every field of it
field=value    sets a field by its dotted path:  train.lr=5e-5  label.classes=10
autoencoder=   the frozen first stage, that of the run to be guided
name=NAME      the run's folder, runs/NAME; an existing run is resumed

python sample.py --run RUN --classifier NAME --class C --classifier-scale 1
"""

from latentdiff import cli

cli.answer_help(__doc__)

import torch
import torch.nn.functional as F
from torch import Tensor

from latentdiff import build, load, recipe, rng
from latentdiff.config import UserError, hash_of
from latentdiff.data import loader
from latentdiff.diffusion.classifier import Classifier
from latentdiff.diffusion.schedule import Schedule
from latentdiff.recipe import ClassifierRecipe
from latentdiff.stage_two.batches import BatchEncoder
from latentdiff.stage_two.components import save_components
from latentdiff.training import optim, run_dir
from latentdiff.training.distributed import init_distributed
from latentdiff.training.log import Log
from latentdiff.training.run_summary import run_summary
from latentdiff.training.state import TrainState

CURVES = ("loss", "accuracy", "val_loss", "val_accuracy_low_noise")


def main(argv: list[str]) -> None:
    r, report_to = cli.training_recipe(argv, ClassifierRecipe, "recipes/classifier/shapes.py")
    if r.train.compile:
        raise UserError("train.compile is true, but only the U-Net of a diffusion run is compiled; set it to false")
    world = init_distributed(r.train.device, deterministic=r.train.deterministic, timeout=r.train.timeout)
    train_data, val_data = recipe.open_data(r, "train"), recipe.open_data(r, "val")
    micro_batches = loader.micro_batches(world.rank, world.size, r.train.batch_size, r.train.grad_accum_steps)
    folder, newest = run_dir.open_run(r, world)
    log = Log(folder, world, run_dir.step_of(newest), r.train, report_to)

    autoencoder, first_stage = load.open_autoencoder(r, folder, world, log.info)
    state = TrainState(world.to_device(build.build_classifier(r, autoencoder), contiguous=True), r.train, world)
    if newest:
        state.load(newest)
    networks, latent = {"classifier": state.model}, f"autoencoder {r.autoencoder.path}"
    size = r.data.image_size
    log.info(run_summary(r, log, state.step, train_data, val_data, size, autoencoder, networks, latent=latent))

    encode_batch = BatchEncoder(r, world, autoencoder, train_data, (r.label,), (), prepare, log)
    bad_images = recipe.bad_image_list(r, folder, train_data)

    def write_files() -> None:
        save_components(folder, autoencoder, first_stage, None, train_data)
        bad_images.write(train_data.unreadable)

    run_dir.create_run_dir(folder, r, world, write_files)
    log.start()
    with run_dir.StopSignal() as stop:
        train(r, world, state, encode_batch, micro_batches, bad_images, val_data, stop, log)
    metadata = {"latentdiff.recipe": hash_of(r), "latentdiff.step": str(r.train.steps)}
    run_dir.finish_run(log, state.ema.model.state_dict(), metadata, CURVES)
    log.info(f"done: {folder}  (python sample.py --run RUN --classifier {folder} --class C)")


def prepare(batch: dict, device: torch.device) -> dict[str, Tensor]:
    return {"label": loader.to_device(batch["label"], device)}


def train(r, world, state, encode_batch, micro_batches, bad_images, val_data, stop, log) -> None:
    """The training loop. micro_batches: positions of this rank's samples in the global batch, per accumulation step."""
    cfg, schedule, optimizer, ema = r.train, Schedule(r.schedule), state.optimizer, state.ema
    ddp = world.ddp(state.model)
    data, start = encode_batch.data, state.step
    batches = loader.batches(data, cfg.seed, cfg.batch_size, micro_batches, start, cfg.steps, cfg.num_workers)
    for step in range(start, cfg.steps):
        for positions in micro_batches:
            data_batch = next(batches)
            bad_images.add(data_batch["bad"])
            z, batch = encode_batch(data_batch, step, positions)
            t = rng.uniform(rng.keys(cfg.seed, step, positions, "t", z.device)) * (schedule.T - 1)
            eps = rng.normal(rng.keys(cfg.seed, step, positions, "eps", z.device), z.shape[1:])
            rng.reseed(cfg.seed, step, positions.start, "dropout")
            with world.no_sync(ddp, positions is not micro_batches[-1]):  # DDP all-reduces in the last backward
                with state.autocast():
                    logits = ddp(schedule.diffuse(z, eps, t), t).float()  # [B, classes]
                loss = F.cross_entropy(logits, batch["label"])
                state.scaler.scale(loss / cfg.grad_accum_steps).backward()
            log.add(loss=loss, accuracy=(logits.argmax(1) == batch["label"]).float().mean())
        lr = optim.lr_at(cfg, step)
        optim.set_lr(optimizer, lr)
        grad_norm = state.clip_grad_norm_()  # NaN if a gradient of any rank is not finite: then nothing is updated
        optimizer.step()
        ema.update(step, grad_norm)
        optimizer.zero_grad(set_to_none=True)
        state.end_step()
        log.add(grad_norm=grad_norm, skipped_steps=grad_norm.isnan().float())
        log.report(step + 1, lr=lr)

        signum = stop.requested(world)
        with log.exclude_from_throughput():
            if cfg.due(step + 1, cfg.val_every):
                log.validation(step + 1, validate(ema.model, r, encode_batch, val_data, schedule))
            if world.is_main and (signum or cfg.due(step + 1, cfg.checkpoint_every)):
                state.save(log.folder)
        if signum:
            stop.exit(log, step + 1, signum)


@torch.no_grad()
def validate(
    model: Classifier, r: ClassifierRecipe, encode_batch: BatchEncoder, val_data, schedule: Schedule, items: int = 256
) -> dict[str, float]:  # fmt: skip
    """Loss and accuracy on validation images at all noise levels, and accuracy in the quarter with the least noise."""
    metrics: list[Tensor] = []
    data = recipe.with_condition_fields(val_data, (r.label,))
    for i, batch in enumerate(loader.sequential_batches(data, range(min(items, len(data))), 32)):
        z = encode_batch.autoencoder.encode(loader.images(batch, encode_batch.device))
        label = prepare(batch, encode_batch.device)["label"]
        t = torch.linspace(0, schedule.T - 1, len(z), device=z.device)
        eps = rng.normal(rng.keys(r.train.seed, i, range(len(z)), "validation", z.device), z.shape[1:])
        logits = model(schedule.diffuse(z, eps, t), t).float()
        right = (logits.argmax(1) == label).float()
        metrics.append(torch.stack([F.cross_entropy(logits, label), right.mean(), right[: -(-len(z) // 4)].mean()]))
    if not metrics:
        return {}
    loss, accuracy, low_noise = torch.stack(metrics).mean(0).tolist()
    return {"val_loss": loss, "val_accuracy": accuracy, "val_accuracy_low_noise": low_noise}


if __name__ == "__main__":
    cli.run(main)
