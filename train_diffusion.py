"""Stage two: train a latent diffusion model in the latent space of a frozen autoencoder.

    python train_diffusion.py [RECIPE.py] [field=value ...] [--overfit N] [--report-to tensorboard|wandb]
    torchrun --nproc_per_node=8 train_diffusion.py RECIPE.py ...

RECIPE.py      what to train (default: recipes/diffusion/demo.py); RECIPE.py --help lists every field of it
field=value    sets a field by its dotted path:  train.lr=5e-5  unet.channels=256  conditions.0.dropout=0.2
autoencoder=   the frozen first stage: a stage-one run (name or folder), or an autoencoder recipe with random weights
name=NAME      the run's folder, runs/NAME (LATENTDIFF_RUNS changes the root); an existing run is resumed
--overfit N    train on N items only, as a first check of data and settings
"""

from latentdiff import cli

cli.answer_help(__doc__)

from torch import Tensor

from latentdiff import build, load, recipe, rng
from latentdiff.data import loader
from latentdiff.diffusion.alignment import open_feature_encoder
from latentdiff.diffusion.loss import timestep_uniforms
from latentdiff.recipe import DiffusionRecipe
from latentdiff.stage_two.batches import BatchEncoder
from latentdiff.stage_two.components import open_tokenizer, save_components
from latentdiff.stage_two.validation import DenoisingValidator
from latentdiff.training import optim, run_dir
from latentdiff.training.cuda_graph import ADVICE, CudaGraph
from latentdiff.training.distributed import init_distributed
from latentdiff.training.log import Log
from latentdiff.training.run_summary import run_summary
from latentdiff.training.state import TrainState

CURVES = ("loss", "val_loss", "text_gap", "grad_norm")


def main(argv: list[str]) -> None:
    r, report_to = cli.training_recipe(argv, DiffusionRecipe, "recipes/diffusion/demo.py")
    world = init_distributed(r.train.device, deterministic=r.train.deterministic, timeout=r.train.timeout)
    train_data, val_data = recipe.open_data(r, "train"), recipe.open_data(r, "val")
    micro_batches = loader.micro_batches(world.rank, world.size, r.train.batch_size, r.train.grad_accum_steps)
    folder, newest = run_dir.open_run(r, world)
    log = Log(folder, world, run_dir.step_of(newest), r.train, report_to)

    autoencoder, first_stage = load.open_autoencoder(r, folder, world, log.info)
    tokenizer = open_tokenizer(r, folder, train_data, world, log.info)
    model = build.build_diffusion(r, autoencoder, tokenizer)
    if not newest:
        load.initialize_from(r, model, log.info)
    load.attach_teacher(r, model, world.device)
    state = TrainState(world.to_device(model, contiguous=True), r.train, world)
    if newest:
        state.load(newest)
    facts = {
        "latent": f"autoencoder {r.autoencoder.path}",
        "objective": f"{r.objective.prediction} on {r.schedule.kind}",
    }
    networks = dict(model.named_children())
    log.info(run_summary(r, log, state.step, train_data, val_data, r.data.image_size, autoencoder, networks, **facts))

    features = None if r.align is None else open_feature_encoder(r.align, world.device)
    fields = (r.conditions, r.derived_fields, model.conditioner.prepare)
    encode_batch = BatchEncoder(r, world, autoencoder, train_data, *fields, log, features)
    bad_images = recipe.bad_image_list(r, folder, train_data)
    validator = DenoisingValidator(r, world, encode_batch, val_data, bad_images, log)

    def write_files() -> None:
        save_components(folder, autoencoder, first_stage, tokenizer, train_data)
        bad_images.write(train_data.unreadable)

    run_dir.create_run_dir(folder, r, world, write_files)
    log.start()
    with run_dir.StopSignal() as stop:
        train(r, world, state, encode_batch, micro_batches, bad_images, validator, stop, log)
    metadata = build.weights_metadata(r, r.train.steps, autoencoder.weights_hash())
    run_dir.finish_run(log, state.ema.model.state_dict(), metadata, CURVES)
    log.info(f"done: {folder}  (python sample.py --run {folder}{' --prompt ...' if tokenizer else ''})")


def train(r, world, state, encode_batch, micro_batches, bad_images, validator, stop, log) -> None:
    """The training loop. micro_batches: positions of this rank's samples in the global batch, per accumulation step."""
    cfg, model, optimizer, ema = r.train, state.model, state.optimizer, state.ema
    ddp = world.ddp(model, broadcast_buffers=False)
    if cfg.compile:
        model.unet.compile()

    def forward_backward(z: Tensor, batch: dict, t: Tensor, eps: Tensor, drops: list[Tensor]) -> Tensor:
        with state.autocast():
            losses = ddp(z, batch, t, eps, drops)  # [B]
            loss = losses.mean()
        state.scaler.scale(loss / cfg.grad_accum_steps).backward()
        return losses

    if cfg.cuda_graph:
        forward_backward = CudaGraph(forward_backward, model.parameters(), ADVICE)
    data, start = encode_batch.data, state.step
    batches = loader.batches(data, cfg.seed, cfg.batch_size, micro_batches, start, cfg.steps, cfg.num_workers)
    for step in range(start, cfg.steps):
        for positions in micro_batches:
            data_batch = next(batches)
            bad_images.add(data_batch["bad"])
            z, batch = encode_batch(data_batch, step, positions)
            u = timestep_uniforms(r.objective, cfg.seed, step, positions, cfg.batch_size, z.device)
            t = model.sample_timesteps(u)
            eps = rng.normal(rng.keys(cfg.seed, step, positions, "eps", z.device), z.shape[1:])
            drops = model.conditioner.sample_drops(rng.keys(cfg.seed, step, positions, "drop", z.device))
            rng.reseed(cfg.seed, step, positions.start, "dropout")
            with world.no_sync(ddp, positions is not micro_batches[-1]):  # DDP all-reduces in the last backward
                losses = forward_backward(z, batch, t, eps, drops)
            log.add(loss=losses.mean())
        if (step + 1) % cfg.log_every == 0:
            log.add(**state.grad_norms())
        lr = optim.lr_at(cfg, step)
        optim.set_lr(optimizer, lr)
        grad_norm = state.clip_grad_norm_()  # NaN if a gradient of any rank is not finite: then nothing is updated
        optimizer.step()
        ema.update(step, grad_norm)
        optimizer.zero_grad(set_to_none=True)
        state.end_step()
        log.add(grad_norm=grad_norm, skipped_steps=grad_norm.isnan().float())
        validator.diagnostics.check(step + 1, log.report(step + 1, lr=lr))

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


if __name__ == "__main__":
    cli.run(main)
