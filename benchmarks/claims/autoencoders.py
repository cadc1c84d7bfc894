"""Claims about autoencoders: small stage-one runs on drawn shapes with several seeds, in runs/claims.

A finished run is not trained again; a stopped one is resumed.
"""

import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.claims.claim import Chart, Claim, Effect, Result, Series, Setting, paired_t
from latentdiff import recipe
from latentdiff.config import read_recipe
from latentdiff.evaluation import features, run
from latentdiff.training import run_dir
from latentdiff.training.distributed import init_distributed

ROOT = Path(__file__).resolve().parents[2]
STEPS = 1000
STAGE_ONE = (
    "train_autoencoder.py",
    "recipes/autoencoder/demo.py",
    f"train.steps={STEPS}",
    "train.optimizer=adamw",
    *(f"train.{name}_every={STEPS}" for name in ("val", "sample", "checkpoint")),
    "train.keep_checkpoints=1",
)
TINY_KL = "autoencoder.bottleneck.weight=1e-6"
F4 = ("autoencoder.channel_mult=1,2,4", "autoencoder.z_channels=3")  # latent channels as in the paper's table 8
F8 = ("autoencoder.channel_mult=1,2,4,4", "autoencoder.z_channels=4")
VQ = (*F4, "autoencoder.bottleneck=VQ")
L1 = (*F8, TINY_KL, "loss.l2=0")
ARMS = {  # changes to the recipe
    "f2": ("autoencoder.channel_mult=1,2", "autoencoder.z_channels=2", TINY_KL),
    "f4": (*F4, TINY_KL),
    "f8": (*F8, TINY_KL),
    "f16": ("autoencoder.channel_mult=1,2,4,4,4", "autoencoder.z_channels=8", TINY_KL),
    "f8, 2 channels": (*F8, "autoencoder.z_channels=2", TINY_KL),
    "f8, 16 channels": (*F8, "autoencoder.z_channels=16", TINY_KL),
    "VQ 16": (*VQ, "autoencoder.bottleneck.codebook_size=16"),
    "VQ 256": (*VQ, "autoencoder.bottleneck.codebook_size=256"),
    **{f"KL {w}": (*F4, f"autoencoder.bottleneck.weight={w}") for w in ("0", "1e-3", "0.05", "1")},
    "L1": (*L1, "loss.perceptual=none"),
    "adversarial": (*L1, "discriminator=Discriminator", "discriminator.channels=16", "discriminator.layers=2",
                    "discriminator.train_from=0.2", "discriminator.start=0.3"),
}  # fmt: skip


def train_run(setting: Setting, name: str, script: str, recipe_path: str, *overrides: str) -> Path:
    """Train runs/claims/NAME if it is not finished; its folder."""
    folder = run_dir.runs_root() / "claims" / name
    if not (folder / "model.safetensors").exists():
        overrides = (*overrides, f"train.device={setting.device}", f"name=claims/{name}")
        subprocess.run([sys.executable, ROOT / script, ROOT / recipe_path, *overrides], check=True, cwd=ROOT)
    return folder


def train_autoencoder(setting: Setting, arm: str, seed: int) -> Path:
    """The folder of a stage-one run; claims with the same arm use the same run."""
    name = "autoencoder-" + arm.replace(", ", "-").replace(" ", "-")
    return train_run(setting, f"{name}-{seed}", *STAGE_ONE, *ARMS[arm], f"train.seed={seed}")


@cache
def autoencoder_metrics(setting: Setting, arm: str, seed: int) -> dict[str, float]:
    """The metrics of evaluate.py of a stage-one run, and raw_std, the standard deviation of the raw latents."""
    world, folder = init_distributed(setting.device), train_autoencoder(setting, arm, seed)
    subject = run.open_run(str(folder), world)
    options = Namespace(features=str(feature_net(setting)), split="val", count=500, summary=False)
    metrics, _ = run.reconstruction_metrics(subject, options, world)
    return metrics | {"raw_std": 1 / subject.autoencoder.latent_scale.mean().item()}


@cache
def feature_net(setting: Setting) -> Path:
    """The weights of the feature network that all arms are evaluated with."""
    folder, world = run_dir.runs_root() / "claims", init_distributed(setting.device)
    folder.mkdir(parents=True, exist_ok=True)
    data = recipe.open_data(read_recipe(ROOT / STAGE_ONE[1]), "train")
    features.build("classifier", data, None, folder, world)
    return folder / "features.safetensors"


Comparison = tuple[str, str, str, str]  # metric, one arm, another, the expected difference


def compare_arms(arms: tuple[str, ...], comparisons: tuple[Comparison, ...], charts: tuple[str, ...]) -> Callable:
    """A claim's measurement: differences of metrics of stage-one runs over seeds."""

    def measure(setting: Setting) -> Result:
        metrics = {arm: [autoencoder_metrics(setting, arm, seed) for seed in setting.seeds] for arm in arms}

        def effect(name: str, a: str, b: str, expected: str) -> Effect:
            differences = [x[name] - y[name] for x, y in zip(metrics[a], metrics[b])]
            return Effect(f"{name}, {a} minus {b}", expected, *paired_t(differences))

        plots = [Chart("", name, [seed_series(name, list(arms), metrics)]) for name in charts]
        protocol = f"{len(setting.seeds)} seeds, {STEPS:,} steps of batch size 8 in every arm, 500 held-out images"
        return Result("drawn shapes, 32 x 32", protocol, [effect(*c) for c in comparisons], plots,
                      "Bars: range over the seeds.")  # fmt: skip

    return measure


def seed_series(name: str, arms: list[str], metrics: dict[str, list[dict]]) -> Series:
    """Mean and range over seeds of a metric, per arm."""
    values = [[run[name] for run in metrics[arm]] for arm in arms]
    return Series(name, arms, [float(np.mean(v)) for v in values], [min(v) for v in values], [max(v) for v in values])


def claim(
    name: str, statement: str, source: str, arms: tuple[str, ...], comparisons: tuple[Comparison, ...], *charts: str
) -> Claim:
    return Claim(name, statement, source, compare_arms(arms, comparisons, charts), 5 * len(arms), trains=True)


CLAIMS = [
    claim("compression", "Stronger compression reconstructs less well.", "table 8",
          ("f2", "f4", "f8", "f16"),
          (("psnr", "f2", "f4", "> 0"), ("psnr", "f4", "f8", "> 0"), ("rfid", "f8", "f2", "> 0")), "psnr", "rfid"),
    claim("channels", "More latent channels reconstruct better.", "table 8",
          ("f8, 2 channels", "f8", "f8, 16 channels"),
          (("psnr", "f8", "f8, 2 channels", "> 0"), ("psnr", "f8, 16 channels", "f8", "> 0")), "psnr", "rfid"),
    claim("kl-vq", "KL reconstructs better than VQ; a large codebook better than a small one.", "table 8",
          ("f4", "VQ 16", "VQ 256"),
          (("psnr", "f4", "VQ 256", "> 0"), ("psnr", "VQ 256", "VQ 16", "> 0")), "psnr", "rfid"),
    claim("kl-weight", "A tiny KL weight keeps latents small without loss of reconstruction.", "app. G",
          ("KL 0", "f4", "KL 1e-3", "KL 0.05", "KL 1"),
          (("raw_std", "KL 1e-3", "KL 0", "< 0"), ("psnr", "f4", "KL 0", "> -0.5"), ("psnr", "KL 1", "f4", "< 0")),
          "raw_std", "psnr"),
    claim("adversarial", "Adversarial and perceptual losses gain realism at the cost of PSNR.", "sec. 3.1",
          ("L1", "adversarial"),
          (("rfid", "adversarial", "L1", "< 0"), ("psnr", "adversarial", "L1", "< 0")), "rfid", "psnr"),
]  # fmt: skip
