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

from torch import Tensor

from latentdiff import build, load, recipe, rng
from latentdiff.data import loader
from latentdiff.diffusion import loss
from latentdiff.recipe import DiffusionRecipe
from latentdiff.stage_two.batches import BatchEncoder
from latentdiff.stage_two.validation import DenoisingValidator
from latentdiff.training import checkpoint, optim, run_dir, run_summary
from latentdiff.training.cuda_graph import CudaGraph
from latentdiff.training.distributed import World, start
from latentdiff.training.log import Log
from latentdiff.training.state import ADVICE, TrainState

CURVES = ("loss", "val_loss", "text_gap", "grad_norm")


def main(words: list[str]) -> None:
    r, report_to = cli.training_recipe(words, DiffusionRecipe, "recipes/diffusion/demo.py")
    world = start(r.train.device, deterministic=r.train.deterministic, timeout=r.train.timeout)
    data, held_out = recipe.open_data(r, "train"), recipe.open_data(r, "val")
    loader.micro_batches(world.rank, world.size, r.train.batch_size, r.train.grad_accum_steps)  # refused now, if at all
    folder, newest = run_dir.open_run(r, world)
    tensors, state = checkpoint.load(newest) if newest else ({}, {"step": 0})
    log = Log(folder, world, state["step"], r.train, report_to)

    autoencoder, first_stage = load.open_autoencoder(r, folder, world, log.say)
    tokenizer = build.open_tokenizer(r, folder, data, world, log.say)
    model = build.build_diffusion(r, autoencoder, tokenizer)
    if not newest:
        load.start_from(r, model, log.say)
    load.attach_teacher(r, model, world.device)
    learner = TrainState(world.place(model, plain=True), r.train, world)
    if newest:
        learner.load(tensors, state)
        tensors.clear()  # its files would stay mapped, in every rank, as long as the training lasts
    aim, networks = f"{r.objective.prediction} on {r.schedule.kind}", dict(model.named_children())
    latent = f"autoencoder {r.autoencoder.path}"
    log.say(run_summary.opening(r, log, data, held_out, autoencoder, networks, latent=latent, objective=aim))

    latents = BatchEncoder(r, world, autoencoder, tokenizer, data, log)
    watch = DenoisingValidator(r, world, latents, held_out, log)
    run_dir.begin(folder, r, world, lambda: build.keep_parts(folder, autoencoder, first_stage, tokenizer, data))
    if world.is_main:
        latents.bad.enter(getattr(data, "bad", []))
    log.start()
    with run_dir.Stop() as stop:
        train(r, world, learner, latents, watch, stop, log)
    about = build.weights_metadata(r, r.train.steps, autoencoder.weights_hash())
    run_dir.finish(log, learner.ema.model.state_dict(), about, CURVES)
    log.say(f"done: {folder}  (python sample.py --run {folder}{' --prompt ...' if tokenizer else ''})")


def train(
    r, world: World, learner: TrainState, latents: BatchEncoder, watch: DenoisingValidator, stop: run_dir.Stop, log: Log
) -> None:
    """The loop. `micro`: the positions in the batch that this rank computes, by pieces."""
    model, t = learner.model, r.train
    parallel = world.parallel(model, broadcast_buffers=False)
    if t.compile:
        model.unet.compile()

    def walk(z: Tensor, batch: dict, timesteps: Tensor, eps: Tensor, drops: list[Tensor], pieces: int) -> Tensor:
        with learner.autocast():
            losses = parallel(z, batch, timesteps, eps, drops)
            loss = losses.mean()
        optim.backward(loss / pieces, learner.scaler)
        return losses

    walk = CudaGraph(walk, model.parameters(), ADVICE) if t.cuda_graph else walk
    micro = loader.micro_batches(world.rank, world.size, t.batch_size, t.grad_accum_steps)
    stream = loader.batches(latents.rows, t.seed, t.batch_size, micro, log.first, t.steps, t.num_workers)
    for step in range(log.first, t.steps):
        for positions in micro:
            z, batch = latents(next(stream), step, positions)
            u = loss.chances(r.objective, t.seed, step, positions, t.batch_size, z.device)
            timesteps = model.draw_timesteps(u)
            eps = rng.normal(rng.keys(t.seed, step, positions, "eps", z.device), z.shape[1:])
            drops = model.draw_drops(rng.keys(t.seed, step, positions, "drop", z.device))
            rng.reseed(t.seed, step, positions.start, "dropout")
            with world.no_sync(parallel, positions is not micro[-1]):
                losses = walk(z, batch, timesteps, eps, drops, len(micro))
            log.add(loss=losses.mean())
        done = step + 1
        if done % t.log_every == 0:
            log.add(**learner.norms())
        log.add(**learner.step(step))
        watch.health.look(done, log.report(done, lr=optim.rate(t, step)))

        leave = stop.wanted(world)
        with log.aside():
            if t.due(done, t.val_every):
                watch.validate(learner.ema.model, done)
            if t.due(done, t.sample_every):
                watch.draw(learner.ema.model, done)
            if world.is_main and (leave or t.due(done, t.checkpoint_every)):
                checkpoint.save(
                    log.folder / "checkpoints", done, learner.tensors(), learner.state(), t.keep_checkpoints
                )
                learner.averages.keep(log.folder, done)
        if leave:
            stop.leave(log, done, leave)


if __name__ == "__main__":
    cli.run(main)
