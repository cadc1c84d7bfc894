"""Claims about autoencoders, which train their own: small runs on drawn shapes, several seeds, under runs/claims.

A finished run is not trained again, and a stopped one goes on.
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
FIRST = ("train_autoencoder.py", "recipes/autoencoder/demo.py", f"train.steps={STEPS}", "train.optimizer=adamw",
         *(f"train.{what}_every={STEPS}" for what in ("val", "sample", "checkpoint")), "train.keep_checkpoints=1")  # fmt: skip
TINY_KL = "autoencoder.bottleneck.weight=1e-6"
F4 = ("autoencoder.channel_mult=1,2,4", "autoencoder.z_channels=3")  # channels of latents as in the paper's table 8
F8 = ("autoencoder.channel_mult=1,2,4,4", "autoencoder.z_channels=4")
VQConfig = (*F4, "autoencoder.bottleneck=VQ")
L1 = (*F8, TINY_KL, "loss.l2=0")
ARMS = {  # what of the recipe differs
    "f2": ("autoencoder.channel_mult=1,2", "autoencoder.z_channels=2", TINY_KL),
    "f4": (*F4, TINY_KL),
    "f8": (*F8, TINY_KL),
    "f16": ("autoencoder.channel_mult=1,2,4,4,4", "autoencoder.z_channels=8", TINY_KL),
    "f8, 2 channels": (*F8, "autoencoder.z_channels=2", TINY_KL),
    "f8, 16 channels": (*F8, "autoencoder.z_channels=16", TINY_KL),
    "VQ 16": (*VQConfig, "autoencoder.bottleneck.codebook_size=16"),
    "VQ 256": (*VQConfig, "autoencoder.bottleneck.codebook_size=256"),
    **{f"KL {w}": (*F4, f"autoencoder.bottleneck.weight={w}") for w in ("0", "1e-3", "0.05", "1")},
    "L1": (*L1, "loss.perceptual=none"),
    "adversarial": (*L1, "discriminator=DiscriminatorConfig", "discriminator.channels=16", "discriminator.layers=2",
                    "discriminator.train_from=0.2", "discriminator.start=0.3"),
}  # fmt: skip


def trained(setting: Setting, name: str, script: str, file: str, *words: str) -> Path:
    """The folder of a finished run."""
    folder = run_dir.runs_root() / "claims" / name
    if not (folder / "model.safetensors").exists():
        words = (*words, f"train.device={setting.device}", f"name=claims/{name}")
        subprocess.run([sys.executable, ROOT / script, ROOT / file, *words], check=True, cwd=ROOT)
    return folder


def autoencoder(setting: Setting, arm: str, seed: int) -> Path:
    """The folder of a stage-one run; claims that compare the same arm share it."""
    name = "autoencoder-" + arm.replace(", ", "-").replace(" ", "-")
    return trained(setting, f"{name}-{seed}", *FIRST, *ARMS[arm], f"train.seed={seed}")


@cache
def figures(setting: Setting, arm: str, seed: int) -> dict[str, float]:
    """What evaluate.py says of a stage-one run; and raw_std."""
    world, folder = init_distributed(setting.device), autoencoder(setting, arm, seed)
    subject = run.open_subject(str(folder), world)
    options = Namespace(features=str(judge(setting)), split="val", count=500, summary=False)
    found, _ = run.reconstructions(subject, options, world)
    return found | {"raw_std": 1 / subject.autoencoder.latent_scale.mean().item()}


@cache
def judge(setting: Setting) -> Path:
    """The network that sees the pictures of all arms."""
    folder, world = run_dir.runs_root() / "claims", init_distributed(setting.device)
    folder.mkdir(parents=True, exist_ok=True)
    data = recipe.open_data(read_recipe(ROOT / FIRST[1]), "train")
    features.find("own", data, None, folder, world)
    return folder / "features.safetensors"


Comparison = tuple[str, str, str, str]  # figure, one arm, another, what the difference is expected to be


def compared(arms: tuple[str, ...], comparisons: tuple[Comparison, ...], charts: tuple[str, ...]) -> Callable:
    """A claim's measurement: differences of figures of stage-one runs over seeds."""

    def measured(setting: Setting) -> Result:
        found = {arm: [figures(setting, arm, seed) for seed in setting.seeds] for arm in arms}

        def effect(name: str, a: str, b: str, expect: str) -> Effect:
            differences = [x[name] - y[name] for x, y in zip(found[a], found[b])]
            return Effect(f"{name}, {a} minus {b}", expect, *paired_t(differences))

        drawn = [Chart("", name, [over_seeds(name, list(arms), found)]) for name in charts]
        protocol = f"{len(setting.seeds)} seeds, {STEPS:,} steps of batch 8 in every arm, 500 held-out pictures"
        return Result("drawn shapes, 32 x 32", protocol, [effect(*c) for c in comparisons], drawn,
                      "Bars reach over the seeds.")  # fmt: skip

    return measured


def over_seeds(name: str, arms: list[str], found: dict[str, list[dict]]) -> Series:
    values = [[one[name] for one in found[arm]] for arm in arms]
    return Series(name, arms, [float(np.mean(v)) for v in values], [min(v) for v in values], [max(v) for v in values])


def claim(
    name: str, says: str, where: str, arms: tuple[str, ...], comparisons: tuple[Comparison, ...], *charts: str
) -> Claim:
    return Claim(name, says, where, compared(arms, comparisons, charts), 5 * len(arms), trains=True)


CLAIMS = [
    claim("compression", "The more an autoencoder compresses, the less it reconstructs.", "table 8",
          ("f2", "f4", "f8", "f16"),
          (("psnr", "f2", "f4", "> 0"), ("psnr", "f4", "f8", "> 0"), ("rfid", "f8", "f2", "> 0")), "psnr", "rfid"),
    claim("channels", "More latent channels reconstruct better.", "table 8",
          ("f8, 2 channels", "f8", "f8, 16 channels"),
          (("psnr", "f8", "f8, 2 channels", "> 0"), ("psnr", "f8, 16 channels", "f8", "> 0")), "psnr", "rfid"),
    claim("kl-vq", "KL reconstructs better than VQ; a large codebook better than a small one.", "table 8",
          ("f4", "VQ 16", "VQ 256"),
          (("psnr", "f4", "VQ 256", "> 0"), ("psnr", "VQ 256", "VQ 16", "> 0")), "psnr", "rfid"),
    claim("kl-weight", "A tiny KL weight keeps latents small and harms no reconstruction.", "app. G",
          ("KL 0", "f4", "KL 1e-3", "KL 0.05", "KL 1"),
          (("raw_std", "KL 1e-3", "KL 0", "< 0"), ("psnr", "f4", "KL 0", "> -0.5"), ("psnr", "KL 1", "f4", "< 0")),
          "raw_std", "psnr"),
    claim("adversarial", "Adversarial and perceptual terms gain realism and cost PSNR.", "sec. 3.1",
          ("L1", "adversarial"),
          (("rfid", "adversarial", "L1", "< 0"), ("psnr", "adversarial", "L1", "< 0")), "rfid", "psnr"),
]  # fmt: skip
