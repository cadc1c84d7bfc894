"""Claims about the networks: speed, memory and signal-to-noise ratio, mostly with untrained weights."""

import math
import subprocess
import sys
import time

import torch
from torch import Tensor

from benchmarks.claims import autoencoders
from benchmarks.claims.claim import Chart, Claim, Effect, Result, Series, Setting, median_interval, paired_t
from latentdiff import recipe
from latentdiff.autoencoder.autoencoder import Autoencoder, AutoencoderConfig
from latentdiff.conditioning.cond import Cond
from latentdiff.data import loader
from latentdiff.diffusion.schedule import Schedule, ScheduleConfig
from latentdiff.diffusion.unet import UNet, UNetConfig
from latentdiff.evaluation import run
from latentdiff.training.distributed import init_distributed
from latentdiff.training.precision import autocast, precision

UNET = UNetConfig(channels=64, channel_mult=(1, 2, 3), num_res_blocks=1, attention_levels=(2,), head_channels=32,
                  norm_groups=16)  # fmt: skip


def throughput(setting: Setting) -> Result:
    """One U-Net on pixels and on latents with f = 4, in turns."""
    device, sizes = init_distributed(setting.device).device, [32, 64, 128]
    torch.manual_seed(0)
    net = UNet(UNET, 3, 3).to(device)
    ratios = {(mode, size): _ratios(net, size, mode, device) for mode in ("train", "sample") for size in sizes}
    medians = {key: median_interval(values) for key, values in ratios.items()}
    growth = [math.log(b / a) for a, b in zip(ratios["sample", 32], ratios["sample", 128])]
    effects = [
        Effect("training at 64 x 64, latent over pixel", "> 2.7", *medians["train", 64]),
        Effect("a sampling step at 64 x 64, latent over pixel", "> 2.7", *medians["sample", 64]),
        Effect("growth of the sampling ratio from 32 to 128, logarithm", "> 0", *median_interval(growth)),
    ]
    series = [Series(mode, sizes, *(list(c) for c in zip(*(medians[mode, size] for size in sizes))))
              for mode in ("train", "sample")]  # fmt: skip
    weights = sum(p.numel() for p in net.parameters())
    protocol = f"one U-Net of {weights:,} weights, f = 4, pairs of steps on {device}, time of the autoencoder excluded"
    chart = Chart("side of the image, pixels", "images per second, latent over pixel", series, log=True)
    return Result("noise", protocol, effects, [chart])


def _ratios(net: UNet, size: int, mode: str, device: torch.device, pairs: int = 10) -> list[float]:
    """Time of a step on pixels over that of a step on latents, in pairs, after two pairs of warm-up."""
    batch = max(1, 4 * 32 * 32 // size**2) * (64 if device.type == "cuda" else 1)
    inputs = [torch.randn(batch, 3, side, side, device=device) for side in (size, size // 4)]
    ratios = []
    for _ in range(pairs + 2):
        pixels, latents = (_seconds(net, x, mode == "train") for x in inputs)
        ratios.append(pixels / latents)
    return ratios[2:]


def _seconds(net: UNet, x: Tensor, train: bool) -> float:
    """Seconds of one step: forward, and in training backward."""
    synchronize = torch.cuda.synchronize if x.device.type == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    with torch.set_grad_enabled(train), autocast(x.device, precision("auto", x.device)):
        y = net(x, torch.zeros(len(x), device=x.device), Cond())
    if train:
        y.square().mean().backward()
    synchronize()
    return time.perf_counter() - start


MEMORY = """
import resource, sys, torch
from benchmarks.claims.networks import autoencoder
side, levels, train = int(sys.argv[1]), tuple(range(3)) if sys.argv[2] == "yes" else (), sys.argv[3] == "train"
torch.set_num_threads(1)
net, x = autoencoder(levels), torch.rand(1, 3, side, side)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with torch.set_grad_enabled(train):
    y = net.decode(net.encode(x))
    if train:
        y.square().mean().backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def autoencoder(attention_levels: tuple[int, ...]) -> Autoencoder:
    torch.manual_seed(0)
    config = AutoencoderConfig(channels=32, channel_mult=(1, 2, 4), num_res_blocks=1, norm_groups=8,
                               attention_levels=attention_levels, mid_attention=bool(attention_levels))  # fmt: skip
    return Autoencoder(config)


def attention_memory(setting: Setting) -> Result:
    """Peak memory of new processes, with attention at every resolution level and without."""
    sides, names = [64, 128], {"attention": "yes", "none": "no"}
    runs = {
        (name, side): [_peak_growth(side, flag, "train") for _ in range(3)]
        for name, flag in names.items()
        for side in sides
    }
    differences = [a - b for a, b in zip(runs["attention", sides[-1]], runs["none", sides[-1]])]
    name = f"memory of training at {sides[-1]}, with minus without attention, MiB"
    series = [Series(arm, sides, *(list(c) for c in zip(*(median_interval(runs[arm, side]) for side in sides))))
              for arm in names]  # fmt: skip
    return Result("noise", "peak memory of a process above its start, one image, f = 4, three processes each, CPU",
                  [Effect(name, "> 0", *paired_t(differences))],
                  [Chart("side of the image, pixels", "MiB", series, log=True)],
                  "Fused kernels do not store the attention matrix, as the paper's code did: queries, keys and values "
                  "remain.")  # fmt: skip


def _peak_growth(side: int, attention: str, mode: str) -> float:
    command = [sys.executable, "-c", MEMORY, str(side), attention, mode]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def snr(setting: Setting) -> Result:
    """Rescaling latents by 1 / std multiplies their signal-to-noise ratio by 1 / std² at every timestep."""
    folder = autoencoders.train_autoencoder(setting, "f4", 0)
    world, schedule = init_distributed(setting.device), Schedule(ScheduleConfig())
    subject = run.open_run(str(folder), world)
    data = recipe.open_data(subject.recipe, "val")
    with torch.no_grad():
        batch = next(loader.sequential_batches(data, range(256), 256))
        raw = subject.autoencoder.moments(loader.images(batch, world.device))[0]
        latents = {"raw": raw, "rescaled": subject.autoencoder.normalize(raw)}
    ts = torch.arange(0, schedule.T, 50, dtype=torch.float64)
    ratios = {name: schedule.log_snr(ts).exp() * z.double().var().item() for name, z in latents.items()}
    std = 1 / subject.autoencoder.latent_scale.mean().item()
    measured = (ratios["raw"] / ratios["rescaled"] / std**2).tolist()
    crossings = [ts[max(0, int((r > 1).sum()) - 1)].item() for r in ratios.values()]
    interval = measured[0], min(measured), max(measured)
    effects = [
        Effect("SNR of raw over rescaled latents, over std²", expect, *interval) for expect in ("> 0.99", "< 1.01")
    ]
    series = [Series(name, ts.tolist(), r.log10().tolist()) for name, r in ratios.items()]
    protocol = f"256 held-out images, KL weight 1e-6, the paper's schedule; standard deviation of raw latents {std:.2f}"
    chart = Chart("timestep", "log10 of the SNR", series)
    return Result("drawn shapes, 32 x 32", protocol, effects, [chart],
                  f"SNR falls below 1 after t = {crossings[0]:.0f} for raw and t = {crossings[1]:.0f} for rescaled "
                  f"latents. This is exact; its effect on larger images is not measured.")  # fmt: skip


CLAIMS = [
    Claim("throughput", "Training and sampling are at least 2.7 times faster in latent space, more for larger images.",
          "table 6, sec. 4.1", throughput, 3),
    Claim("attention-memory", "An autoencoder without attention needs less memory.", "sec. 4.5, table 8",
          attention_memory, 3),
    Claim("snr", "The scale of the latents sets their signal-to-noise ratio.", "app. D.1, fig. 15", snr, 3,
          trains=True),
]  # fmt: skip
