"""Claims about whole models: diffusion runs on drawn shapes, in runs/claims."""

import math
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch

from benchmarks.claims.arms import Kernel
from benchmarks.claims.autoencoders import STEPS, feature_net, seed_series, train_autoencoder, train_run
from benchmarks.claims.claim import Chart, Claim, Effect, Result, Series, Setting, bootstrap, paired_t
from latentdiff import recipe
from latentdiff.data import loader
from latentdiff.diffusion.schedule import sampling_timesteps
from latentdiff.evaluation import distances, features, image_sets, run
from latentdiff.evaluation.sample_images import SampleSpec
from latentdiff.model import LatentDiffusion
from latentdiff.sampling.pipeline import SampleNoise
from latentdiff.training import checkpoint
from latentdiff.training.distributed import World, init_distributed
from latentdiff.training.log import read_metrics

STAGE_TWO = (
    "train_diffusion.py",
    "recipes/diffusion/small.py",
    "train.val_every=1000",
    "train.sample_every=4000",
    "train.checkpoint_every=250",
    "train.keep_checkpoints=100",
    "sampling.sampler=unipc",
    "sampling.steps=10",
)
FACTORS = (1, 2, 4, 8, 16)
EVALUATED_STEPS = (250, 500, 1000, 2000)  # of the trade-off
SHORT_RUNS = {1: 500, 2: 1000}  # f -> steps, where steps take longest


def train_unconditional(
    setting: Setting, f: int, seed: int, *overrides: str, steps: int = EVALUATED_STEPS[-1], name: str = "tradeoff"
) -> Path:
    """An unconditional run on the autoencoder with that f (1: pixels); the U-Net is the same for every f."""
    path = "recipes/autoencoder/pixel.py" if f == 1 else train_autoencoder(setting, f"f{f}", seed)
    overrides = (f"autoencoder={path}", "autoencoder.latent_stats=data", f"train.steps={steps}", f"train.seed={seed}",
                 *overrides)  # fmt: skip
    return train_run(setting, f"{name}-f{f}-{seed}", *STAGE_TWO, *overrides)


def sample_features(
    setting: Setting, folder: Path, world: World, weights: Path | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of samples of an unconditional run, with the weights of a checkpoint, and of its training data."""
    subject = run.open_run(str(folder), world)
    if weights is not None:
        subject.pipeline.model.load_state_dict(checkpoint.read_tensors(weights))
    extractor = features.build(str(feature_net(setting)), None, None, folder, world)
    spec = SampleSpec(None, (), ("",), setting.count, setting.seed)
    options = Namespace(split="val", batch_size=100, summary=False, sampler=None, steps=None, guidance_scale=None)
    images, _ = run.sample(subject, spec, subject.pipeline.model.sampling, "claims", options, world)
    train = recipe.open_data(subject.recipe, "train")
    real = image_sets.extract(extractor, train, min(len(train), 5000), world)
    return image_sets.extract(extractor, images, len(images), world).features, real.features


def tradeoff(setting: Setting) -> Result:
    """KID during training, by steps and by seconds on this machine; one run per f, with seed 0."""
    world, curves, in_budget = init_distributed(setting.device), {}, {}
    for f in sorted(FACTORS, key=lambda f: f != 4):  # f = 4 first: its seconds are the budget of all
        folder = train_unconditional(setting, f, 0, steps=SHORT_RUNS.get(f, EVALUATED_STEPS[-1]))
        log = [(line["step"], line["seconds"]) for line in read_metrics(folder / "metrics.jsonl")]
        checkpoints = {int(path.name[5:]): path for path in checkpoint.list_checkpoints(folder / "checkpoints")}

        def kernel(step: int, folder: Path = folder, checkpoints: dict = checkpoints) -> Kernel:
            return Kernel(*sample_features(setting, folder, world, checkpoints[step] / "ema.safetensors"))

        seconds = {step: float(np.interp(step, *zip(*log))) for step in checkpoints}
        kid = {step: kernel(step) for step in EVALUATED_STEPS if step in checkpoints}
        curves[f] = [(step, seconds[step], kid[step]) for step in kid]
        budget = curves[4][-1][1]
        last_step = max((step for step in checkpoints if seconds[step] <= budget), default=min(checkpoints))
        in_budget[f] = kid.get(last_step) or kernel(last_step)
    curves = {f: curves[f] for f in FACTORS}
    final = {f: points[-1][2] for f, points in curves.items()}

    def effect(name: str, a: Kernel, b: Kernel) -> Effect:
        return Effect(name, "> 0", *bootstrap(lambda w: a(w) - b(w), setting.count))

    effects = [effect("KID of f = 1 minus f = 4, equal seconds", in_budget[1], in_budget[4]),
               effect("KID of f = 16 minus f = 4, equal seconds", in_budget[16], in_budget[4]),
               effect("KID of f = 16 minus f = 4, equal steps", final[16], final[4])]  # fmt: skip
    equal_weights = torch.ones(setting.count, dtype=torch.float64)
    series = {i: [Series(f"f = {f}", [p[i] for p in points], [p[2](equal_weights) for p in points])
                  for f, points in curves.items()] for i in (0, 1)}  # fmt: skip
    charts = [Chart("steps", "KID", series[0], log=True), Chart("seconds of training", "KID", series[1], log=True)]
    protocol = (f"one seed per f; {EVALUATED_STEPS[-1]} steps of the same U-Net (f = 1: {SHORT_RUNS[1]}, f = 2: "
                f"{SHORT_RUNS[2]}, which takes far longer than the time budget), unconditional; {setting.count} images "
                f"each; intervals are over images, not over seeds")  # fmt: skip
    best = min(in_budget, key=lambda f: in_budget[f](equal_weights))
    note = (f"In the time that f = 4 takes, f = {best} reaches the lowest KID; for large f the autoencoders, "
            f"trained for {STEPS:,} steps, are the limit.")  # fmt: skip
    return Result("drawn shapes, 32 x 32", protocol, effects, charts, note)


def few_images(setting: Setting) -> Result:
    """Trained on 64 and on 20,000 images: how close samples are to the training images."""
    world, metrics = init_distributed(setting.device), {}
    for count in (64, 20000):
        for seed in setting.seeds:
            folder = train_unconditional(setting, 4, seed, f"data.count={count}", steps=4000, name=f"count{count}")
            samples, real = sample_features(setting, folder, world)
            val_data = recipe.open_data(run.open_run(str(folder), world).recipe, "val")
            extractor = features.build(str(feature_net(setting)), None, None, folder, world)
            held_out = image_sets.extract(extractor, val_data, len(val_data), world).features
            metrics.setdefault(str(count), []).append(distances.memorization(samples, real, held_out))
    few, many = ([m["nearest_neighbor_ratio"] for m in runs] for runs in metrics.values())
    differences = paired_t([a - b for a, b in zip(few, many)])
    effects = [Effect("nearest ratio, 64 minus 20,000 images", "< 0", *differences),
               Effect("nearest ratio, 20,000 images", "> 0.8", *paired_t(many))]  # fmt: skip
    chart = Chart("training images", "nearest ratio", [seed_series("nearest_neighbor_ratio", list(metrics), metrics)])
    protocol = f"{len(setting.seeds)} seeds, 4,000 steps, unconditional"
    return Result("drawn shapes, 32 x 32", protocol, effects, [chart])


TASKS = ("uncond", "class", "text", "superres", "inpaint", "semantic", "layout")


def reuse(setting: Setting) -> Result:
    """One frozen autoencoder for seven kinds of second stage: its weights do not change, and each stage learns."""
    runs = {task: [train_task(setting, task, seed) for seed in setting.seeds] for task in TASKS}
    unchanged = float(np.mean([same for seeds in runs.values() for *_, same in seeds]))
    worst = paired_t([max(last / first for first, last, _ in tasks) for tasks in zip(*runs.values())])
    effects = [Effect("fraction of runs whose autoencoder is unchanged bit for bit", "> 0.99", *[unchanged] * 3),
               Effect("val_loss after 200 steps over that after 50, the worst task", "< 1", *worst)]  # fmt: skip
    series = [Series(name, list(TASKS), [float(np.mean([run[i] for run in seeds])) for seeds in runs.values()])
              for i, name in enumerate(("50 steps", "200 steps"))]  # fmt: skip
    protocol = f"{len(setting.seeds)} seeds; 200 steps of each task's small recipe on the autoencoder of the same seed"
    return Result("drawn shapes, 32 x 32", protocol, effects, [Chart("task", "val_loss", series)])


def train_task(setting: Setting, task: str, seed: int) -> tuple[float, float, bool]:
    """val_loss after 50 and 200 steps, and whether the run's autoencoder has the weights that it started with."""
    source = train_autoencoder(setting, "f4", seed)
    overrides = (f"autoencoder={source}", "init=", f"train.seed={seed}", "train.steps=200", "train.val_every=50",
                 "train.log_every=10")  # fmt: skip
    folder = train_run(
        setting, f"reuse-{task}-{seed}", "train_diffusion.py", f"recipes/diffusion/{task}.py", *overrides
    )
    before, after = (checkpoint.read_tensors(path / "model.safetensors") for path in (source, folder / "autoencoder"))
    same = all(
        torch.equal(before[name], after[name]) for name in before if name not in ("latent_shift", "latent_scale")
    )
    losses = [line["val_loss"] for line in read_metrics(folder / "metrics.jsonl") if "val_loss" in line]
    return losses[0], losses[-1], same


def rate_distortion(setting: Setting, count: int = 200) -> Result:
    """Rate and distortion of the pixel model on held-out images, from the highest noise level down."""
    world = init_distributed(setting.device)
    subject = run.open_run(str(train_unconditional(setting, 1, 0, steps=SHORT_RUNS[1])), world)
    data, model = recipe.open_data(subject.recipe, "val"), subject.pipeline.model
    z = torch.cat([subject.autoencoder.encode(loader.images(batch, world.device))
                   for batch in loader.sequential_batches(data, range(count), 100)])  # fmt: skip
    ts = sampling_timesteps(64, model.schedule, "log_snr").to(world.device)
    noise = SampleNoise(list(range(count)), z.shape[1:], z.device)()
    errors = torch.stack([_error(model, z, noise, t) for t in ts], 1)  # [N, K, C, h, w]
    rmse = 255 / 2 * (errors / subject.autoencoder.latent_scale.view(-1, 1, 1)).square().flatten(2).mean(2).sqrt().cpu()
    snr, squared_errors = model.schedule.log_snr(ts).exp(), errors.double().square().flatten(2).sum(2)
    bits = rate_bound(squared_errors, z.double().square().flatten(1).sum(1), snr).cpu() / z[0].numel()

    def fraction(weights: torch.Tensor) -> float:
        """The fraction of all bits that is spent after distortion has fallen by nine tenths."""
        rate, distortion = (weights @ x.double() / weights.sum() for x in (bits, rmse))
        reached = int((distortion > distortion[0] - 0.9 * (distortion[0] - distortion[-1])).sum())
        return 1 - (rate[reached] / rate[-1]).item()

    effect = Effect(
        "fraction of the bits spent on the last tenth of the distortion", "> 0.5", *bootstrap(fraction, count)
    )
    curve = Series("pixels", bits.mean(0).tolist(), rmse.mean(0).tolist())
    protocol = f"{count} images, the pixel model of the trade-off, one seed, {len(ts)} noise levels"
    return Result(
        "drawn shapes, 32 x 32, held out",
        protocol,
        [effect],
        [Chart("bits per dimension", "RMSE, of 255", [curve])],
        "An upper bound from a small model: it includes what the model predicts badly, mostly edges.",
    )


def rate_bound(squared_errors: torch.Tensor, initial: torch.Tensor, snr: torch.Tensor) -> torch.Tensor:
    """Upper bound of the bits that encode an image down to each noise level (Kingma et al. 2021, eq. 13): [N, K].

    squared_errors [N, K]: |x - x̂|² at noise levels of rising snr [K]; initial [N]: |x|², the error of predicting 0.
    """
    before = torch.cat([initial[:, None], squared_errors[:, :-1]], 1)
    return (before * snr.diff(prepend=torch.zeros_like(snr[:1]))).cumsum(1) / (2 * math.log(2))


@torch.no_grad()
def _error(model: LatentDiffusion, z: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The error of the predicted x0 at timestep t: [N, C, h, w]."""
    denoise, errors = model.denoiser(model.condition({}, 100), model.sampling), []
    for x, eps in zip(z.split(100), noise.split(100)):
        ts = t.expand(len(x))
        errors.append(denoise(model.schedule.diffuse(x, eps, ts), ts)[0].float() - x)
    return torch.cat(errors)


CLAIMS = [
    Claim("tradeoff", "The best f lies between pixels (too slow) and strong compression (too lossy).", "figs. 6, 17",
          tradeoff, 60, trains=True, quick=False),
    Claim("rate-distortion", "Most bits of an image encode details that are hardly visible.", "fig. 2",
          rate_distortion, 25, trains=True, quick=False),
    Claim("few-images", "A model of few images memorises them, a model of many does not.", "sec. 5", few_images, 60,
          trains=True, quick=False),
    Claim("reuse", "One autoencoder serves many models.", "sec. 1", reuse, 10, trains=True),
]  # fmt: skip
