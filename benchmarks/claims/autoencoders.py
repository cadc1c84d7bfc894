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
from latentdiff.metrics import features, measure
from latentdiff.training import run
from latentdiff.training.world import start

ROOT = Path(__file__).resolve().parents[2]
FIRST = ("train_autoencoder.py", "recipes/autoencoder/demo.py", "train.steps=1500", "train.val_every=1500",
         "train.sample_every=1500", "train.checkpoint_every=500", "train.keep=1")  # fmt: skip
FACTORS = {  # f -> what of the recipe differs; channels of the latent as in the paper's table 8
    1: ("autoencoder=recipes/autoencoder/pixel.py",),
    2: ("autoencoder.channel_mult=1,2", "autoencoder.z_channels=2"),
    4: ("autoencoder.channel_mult=1,2,4", "autoencoder.z_channels=3"),
    8: ("autoencoder.channel_mult=1,2,4,4", "autoencoder.z_channels=4"),
    16: ("autoencoder.channel_mult=1,2,4,4,4", "autoencoder.z_channels=8"),
}
TINY_KL = "autoencoder.bottleneck.weight=1e-6"


def trained(setting: Setting, name: str, script: str, file: str, *words: str) -> Path:
    """The folder of a finished run."""
    folder = run.runs_root() / "claims" / name
    if not (folder / "model.safetensors").exists():
        words = (*words, f"train.device={setting.device}", f"name=claims/{name}")
        subprocess.run([sys.executable, ROOT / script, ROOT / file, *words], check=True, cwd=ROOT)
    return folder


@cache
def figures(setting: Setting, name: str, words: tuple[str, ...], seed: int) -> dict[str, float]:
    """What evaluate.py says of a stage-one run, trained with these words from this seed; and raw_std."""
    folder = trained(setting, f"{name}-{seed}", *FIRST, *words, f"train.seed={seed}")
    world = start(setting.device)
    subject = measure.open_subject(str(folder), world)
    options = Namespace(features=str(judge(setting)), split="val", count=500, summary=False)
    found, _ = measure.reconstructions(subject, options, world)
    return found | {"raw_std": 1 / subject.autoencoder.scale.mean().item()}


@cache
def judge(setting: Setting) -> Path:
    """The network that sees the pictures of all arms."""
    folder, world = run.runs_root() / "claims", start(setting.device)
    folder.mkdir(parents=True, exist_ok=True)
    data = recipe.open_data(read_recipe(ROOT / FIRST[1]), "train")
    features.find("own", data, None, folder, world)
    return folder / "features.safetensors"


Arms = dict[str, tuple[str, ...]]
Comparison = tuple[str, str, str, str]  # figure, one arm, another, what the difference is expected to be


def compared(group: str, arms: Arms, comparisons: tuple[Comparison, ...], charts: tuple[str, ...]) -> Callable:
    """A claim's measurement: stage-one runs that differ in `arms`, and differences of figures over seeds."""

    def measured(setting: Setting) -> Result:
        found = {a: [figures(setting, f"{group}-{a}", words, s) for s in setting.seeds] for a, words in arms.items()}

        def effect(name: str, a: str, b: str, expect: str) -> Effect:
            differences = [x[name] - y[name] for x, y in zip(found[a], found[b])]
            return Effect(f"{name}, {a} minus {b}", expect, *paired_t(differences))

        drawn = [Chart("", name, [over_seeds(name, list(arms), found)]) for name in charts]
        protocol = f"{len(setting.seeds)} seeds, 1,500 steps of batch 8 in every arm, 500 held-out pictures"
        return Result("drawn shapes, 32 x 32", protocol, [effect(*c) for c in comparisons], drawn,
                      "Bars reach over the seeds.")  # fmt: skip

    return measured


def over_seeds(name: str, arms: list[str], found: dict[str, list[dict]]) -> Series:
    values = [[one[name] for one in found[arm]] for arm in arms]
    return Series(name, arms, [float(np.mean(v)) for v in values], [min(v) for v in values], [max(v) for v in values])


COMPRESSION = {f"f{f}": (*FACTORS[f], TINY_KL) for f in (2, 4, 8, 16)}
CHANNELS = {f"c{c}": (*FACTORS[8], f"autoencoder.z_channels={c}", TINY_KL) for c in (2, 4, 16)}
BOTTLENECKS = {"KL": (*FACTORS[4], TINY_KL)} | {
    f"VQ{n}": (*FACTORS[4], "autoencoder.bottleneck=VQ", f"autoencoder.bottleneck.codebook_size={n}") for n in (16, 256)
}
LOSSES = {
    "L1": (*FACTORS[8], TINY_KL, "loss.l2=0", "loss.perceptual=none"),
    "adversarial": (*FACTORS[8], TINY_KL, "loss.l2=0", "discriminator=DiscriminatorConfig", "discriminator.channels=16",
                    "discriminator.layers=2", "discriminator.learn_from=0.2", "discriminator.start=0.3"),
}  # fmt: skip
WEIGHTS = {w: (*FACTORS[4], f"autoencoder.bottleneck.weight={w}") for w in ("0", "1e-6", "1e-3", "0.05", "1")}


def claim(name: str, says: str, where: str, arms: Arms, comparisons: tuple[Comparison, ...], *charts: str) -> Claim:
    return Claim(name, says, where, compared(name, arms, comparisons, charts), 4 * len(arms), trains=True)


CLAIMS = [
    claim("compression", "The more an autoencoder compresses, the less it reconstructs.", "table 8", COMPRESSION,
          (("psnr", "f2", "f4", "> 0"), ("psnr", "f4", "f8", "> 0"), ("rfid", "f8", "f2", "> 0")), "psnr", "rfid"),
    claim("channels", "More latent channels reconstruct better.", "table 8", CHANNELS,
          (("psnr", "c4", "c2", "> 0"), ("psnr", "c16", "c4", "> 0")), "psnr", "rfid"),
    claim("kl-vq", "KL reconstructs better than VQ; a large codebook better than a small one.", "table 8", BOTTLENECKS,
          (("psnr", "KL", "VQ256", "> 0"), ("psnr", "VQ256", "VQ16", "> 0")), "psnr", "rfid"),
    claim("kl-weight", "A tiny KL weight keeps latents small and harms no reconstruction.", "app. G", WEIGHTS,
          (("raw_std", "1e-3", "0", "< 0"), ("psnr", "1e-6", "0", "> -0.5"), ("psnr", "1", "1e-6", "< 0")),
          "raw_std", "psnr"),
    claim("adversarial", "Adversarial and perceptual terms gain realism and cost PSNR.", "sec. 3.1", LOSSES,
          (("rfid", "adversarial", "L1", "< 0"), ("psnr", "adversarial", "L1", "< 0")), "rfid", "psnr"),
]  # fmt: skip
