"""Claims about whole models, which train their own on drawn shapes, under runs/claims."""

import math
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch

from benchmarks.claims.arms import Kernel
from benchmarks.claims.autoencoders import STEPS, autoencoder, judge, over_seeds, trained
from benchmarks.claims.claim import Chart, Claim, Effect, Result, Series, Setting, bootstrap, paired_t
from latentdiff import recipe
from latentdiff.data import loader
from latentdiff.diffusion.schedule import sampling_timesteps
from latentdiff.evaluation import distances, features, image_sets, run
from latentdiff.evaluation.sample_images import SampleSpec
from latentdiff.sampling.pipeline import SampleNoise
from latentdiff.model import LatentDiffusion
from latentdiff.training import checkpoint
from latentdiff.training.distributed import World, init_distributed
from latentdiff.training.log import read_metrics

SECOND = ("train_diffusion.py", "recipes/diffusion/small.py", "train.val_every=1000", "train.sample_every=4000",
          "train.checkpoint_every=250", "train.keep_checkpoints=100", "sampling.sampler=unipc", "sampling.steps=10")  # fmt: skip
FACTORS = (1, 2, 4, 8, 16)
GRADES = (250, 500, 1000, 2000)  # steps after which the trade-off is judged
LENGTHS = {1: 500, 2: 1000}  # steps of those that take longest


def latent_run(
    setting: Setting, f: int, seed: int, *words: str, steps: int = GRADES[-1], name: str = "tradeoff"
) -> Path:
    """An unconditional run on the autoencoder of that f (1: pixels), the same U-Net for every f."""
    place = "recipes/autoencoder/pixel.py" if f == 1 else autoencoder(setting, f"f{f}", seed)
    words = (
        f"autoencoder={place}",
        "autoencoder.latent_stats=data",
        f"train.steps={steps}",
        f"train.seed={seed}",
        *words,
    )
    return trained(setting, f"{name}-f{f}-{seed}", *SECOND, *words)


def seen(
    setting: Setting, folder: Path, world: World, weights: Path | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of what an unconditional run draws, with the weights of a checkpoint, and of its training data."""
    subject = run.open_subject(str(folder), world)
    if weights is not None:
        subject.model.load_state_dict(checkpoint.read_tensors(weights) | _frozen(subject.model))
    extractor = features.find(str(judge(setting)), None, None, folder, world)
    wanted = SampleSpec(None, (), ("",), setting.count, setting.seed)
    options = Namespace(split="val", batch_size=100, summary=False, sampler=None, steps=None, guidance_scale=None)
    drawn, _ = run.draw(subject, wanted, subject.model.sampling, "claims", options, world)
    train = recipe.open_data(subject.recipe, "train")
    real = image_sets.extract(extractor, train, min(len(train), 5000), world)
    return image_sets.extract(extractor, drawn, len(drawn), world).features, real.features


def _frozen(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value for name, value in model.state_dict().items() if name.startswith("autoencoder.")}


def tradeoff(setting: Setting) -> Result:
    """KID over training, by steps and by seconds of this machine; seed 0 alone, one run per f."""
    world, curves, within = init_distributed(setting.device), {}, {}
    for f in sorted(FACTORS, key=lambda f: f != 4):  # f = 4 first: its seconds are the budget of all
        folder = latent_run(setting, f, 0, steps=LENGTHS.get(f, GRADES[-1]))
        logged = [(row["step"], row["seconds"]) for row in read_metrics(folder / "metrics.jsonl")]
        places = {int(place.name[5:]): place for place in checkpoint.list_checkpoints(folder / "checkpoints")}

        def kernel(step: int, folder: Path = folder, places: dict = places) -> Kernel:
            return Kernel(*seen(setting, folder, world, places[step] / "ema.safetensors"))

        clock = {step: float(np.interp(step, *zip(*logged))) for step in places}
        found = {step: kernel(step) for step in GRADES if step in places}
        curves[f] = [(step, clock[step], found[step]) for step in found]
        budget = curves[4][-1][1]
        in_time = max((step for step in places if clock[step] <= budget), default=min(places))
        within[f] = found.get(in_time) or kernel(in_time)
    curves = {f: curves[f] for f in FACTORS}
    last = {f: points[-1][2] for f, points in curves.items()}

    def effect(what: str, a: Kernel, b: Kernel) -> Effect:
        return Effect(what, "> 0", *bootstrap(lambda w: a(w) - b(w), setting.count))

    effects = [effect("KID of f = 1 minus f = 4, equal seconds", within[1], within[4]),
               effect("KID of f = 16 minus f = 4, equal seconds", within[16], within[4]),
               effect("KID of f = 16 minus f = 4, equal steps", last[16], last[4])]  # fmt: skip
    whole = torch.ones(setting.count, dtype=torch.float64)
    series = {i: [Series(f"f = {f}", [p[i] for p in points], [p[2](whole) for p in points])
                  for f, points in curves.items()] for i in (0, 1)}  # fmt: skip
    charts = [Chart("steps", "KID", series[0], log=True), Chart("seconds of training", "KID", series[1], log=True)]
    protocol = (f"one seed per f; {GRADES[-1]} steps of the same U-Net (f = 1: {LENGTHS[1]}, f = 2: {LENGTHS[2]}: far "
                f"beyond the seconds that all are given), unconditional; {setting.count} pictures each; "
                f"intervals are over pictures, not over seeds")  # fmt: skip
    best = min(within, key=lambda f: within[f](whole))
    note = (f"With the seconds that f = 4 takes, f = {best} has the least KID; autoencoders of {STEPS:,} steps are the "
            f"limit of large f.")  # fmt: skip
    return Result("drawn shapes, 32 x 32", protocol, effects, charts, note)


def by_heart(setting: Setting) -> Result:
    """Trained on 64 pictures and on 20,000: how near what is drawn is to what was learned."""
    world, ratios = init_distributed(setting.device), {}
    for count in (64, 20000):
        for seed in setting.seeds:
            folder = latent_run(setting, 4, seed, f"data.count={count}", steps=4000, name=f"count{count}")
            drawn, real = seen(setting, folder, world)
            other = recipe.open_data(run.open_subject(str(folder), world).recipe, "val")
            extractor = features.find(str(judge(setting)), None, None, folder, world)
            held_out = image_sets.extract(extractor, other, len(other), world).features
            ratios.setdefault(str(count), []).append(distances.memorisation(drawn, real, held_out))
    few, many = ([one["nearest_ratio"] for one in some] for some in ratios.values())
    gaps = paired_t([a - b for a, b in zip(few, many)])
    effects = [Effect("nearest ratio, 64 minus 20,000 pictures", "< 0", *gaps),
               Effect("nearest ratio, 20,000 pictures", "> 0.8", *paired_t(many))]  # fmt: skip
    chart = Chart("pictures to learn from", "nearest ratio", [over_seeds("nearest_ratio", list(ratios), ratios)])
    protocol = f"{len(setting.seeds)} seeds, 4,000 steps, unconditional"
    return Result("drawn shapes, 32 x 32", protocol, effects, [chart])


TASKS = ("uncond", "class", "text", "superres", "inpaint", "semantic", "layout")


def reuse(setting: Setting) -> Result:
    """One frozen autoencoder under seven kinds of second stage: its weights stay, and each stage learns."""
    found = {task: [learns(setting, task, seed) for seed in setting.seeds] for task in TASKS}
    kept = float(np.mean([same for runs in found.values() for *_, same in runs]))
    worst = paired_t([max(last / first for first, last, _ in runs) for runs in zip(*found.values())])
    effects = [Effect("share of runs that kept the autoencoder bit by bit", "> 0.99", kept, kept, kept),
               Effect("val_loss after 200 steps over that after 50, the worst task", "< 1", *worst)]  # fmt: skip
    names = {0: "50 steps", 1: "200 steps"}
    series = [Series(name, list(TASKS), [float(np.mean([run[i] for run in runs])) for runs in found.values()])
              for i, name in names.items()]  # fmt: skip
    protocol = f"{len(setting.seeds)} seeds; 200 steps of each task's small recipe on the autoencoder of its seed"
    return Result("drawn shapes, 32 x 32", protocol, effects, [Chart("task", "val_loss", series)])


def learns(setting: Setting, task: str, seed: int) -> tuple[float, float, bool]:
    """val_loss after 50 and 200 steps, and whether the run's autoencoder is still the one that it began with."""
    source = autoencoder(setting, "f4", seed)
    words = (f"autoencoder={source}", "init=", f"train.seed={seed}", "train.steps=200", "train.val_every=50",
             "train.log_every=10")  # fmt: skip
    folder = trained(setting, f"reuse-{task}-{seed}", "train_diffusion.py", f"recipes/diffusion/{task}.py", *words)
    own, kept = (checkpoint.read_tensors(path / "model.safetensors") for path in (source, folder / "autoencoder"))
    same = all(torch.equal(own[name], kept[name]) for name in own if name not in ("latent_shift", "latent_scale"))
    losses = [row["val_loss"] for row in read_metrics(folder / "metrics.jsonl") if "val_loss" in row]
    return losses[0], losses[-1], same


def rate_distortion(setting: Setting, count: int = 200) -> Result:
    """What the pixel model must be told of held-out pictures, from the noise down, and what that buys."""
    world = init_distributed(setting.device)
    subject = run.open_subject(str(latent_run(setting, 1, 0, steps=LENGTHS[1])), world)
    data, model = recipe.open_data(subject.recipe, "val"), subject.model
    z = torch.cat([subject.autoencoder.encode(loader.images(batch, world.device))
                   for batch in loader.sequential_batches(data, range(count), 100)])  # fmt: skip
    ts, noise = (
        sampling_timesteps(64, model.schedule, "log_snr").to(world.device),
        Noise(list(range(count)), z.shape[1:], z.device)(),
    )
    errors = torch.stack([_error(model, z, noise, t) for t in ts], 1)  # [N, K, C, h, w]
    rmse = 255 / 2 * (errors / subject.autoencoder.latent_scale.view(-1, 1, 1)).square().flatten(2).mean(2).sqrt().cpu()
    snr, squares = model.schedule.log_snr(ts).exp(), errors.double().square().flatten(2).sum(2)
    bits = bound(squares, z.double().square().flatten(1).sum(1), snr).cpu() / z[0].numel()

    def share(weights: torch.Tensor) -> float:
        """Of all bits, those that are spent after distortion has fallen by nine tenths."""
        spent, left = (weights @ x.double() / weights.sum() for x in (bits, rmse))
        reached = int((left > left[0] - 0.9 * (left[0] - left[-1])).sum())
        return 1 - (spent[reached] / spent[-1]).item()

    effect = Effect("share of the bits that buy the last tenth of the distortion", "> 0.5", *bootstrap(share, count))
    curve = Series("pixels", bits.mean(0).tolist(), rmse.mean(0).tolist())
    protocol = f"{count} pictures, the pixel model of the trade-off, one seed, {len(ts)} noise levels"
    return Result("drawn shapes, 32 x 32, held out", protocol, [effect],
                  [Chart("bits per number of the picture", "RMSE, of 255", [curve])],
                  "A bound for a small model: it pays for what it cannot guess, edges most of all.")  # fmt: skip


def bound(squares: torch.Tensor, first: torch.Tensor, snr: torch.Tensor) -> torch.Tensor:
    """Bits that tell a picture down to each noise level, at most (Kingma et al. 2021, eq. 13): [N, K].

    squares [N, K] are |x - x̂|² at levels of rising snr [K]; first [N] is that of guessing 0 before anything is told.
    """
    before = torch.cat([first[:, None], squares[:, :-1]], 1)
    return (before * snr.diff(prepend=torch.zeros_like(snr[:1]))).cumsum(1) / (2 * math.log(2))


@torch.no_grad()
def _error(model: LatentDiffusion, z: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """What is missing in the guess of z [N, C, h, w] at timestep t."""
    denoise, found = model.denoiser(model.condition({}, 100), model.sampling), []
    for x, eps in zip(z.split(100), noise.split(100)):
        times = t.expand(len(x))
        found.append(denoise(model.schedule.diffuse(x, eps, times), times)[0].float() - x)
    return torch.cat(found)


CLAIMS = [
    Claim("tradeoff", "Between pixels, too slow, and strong compression, too lossy, lies the best f.", "figs. 6, 17",
          tradeoff, 60, trains=True, quick=False),
    Claim("rate-distortion", "Most of the bits of a picture say what hardly anyone sees.", "fig. 2",
          rate_distortion, 25, trains=True, quick=False),
    Claim("by-heart", "A model of few pictures learns them by heart, one of many does not.", "sec. 5", by_heart, 60,
          trains=True, quick=False),
    Claim("reuse", "One autoencoder serves many models.", "sec. 1", reuse, 10, trains=True),
]  # fmt: skip
