"""The training loops of the two scripts, compared with those of diffusers' examples."""

import importlib.util
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
from PIL import Image

from benchmarks.speed import networks
from benchmarks.speed.benchmark import Benchmark, Measurement, Target, on_gpu, scaled, single, spread
from benchmarks.speed.interleave import ROOT, Implementation, Spread, interleave, ratio, time_key
from latentdiff import recipe as recipes
from latentdiff.autoencoder import perceptual
from latentdiff.autoencoder.autoencoder import AutoencoderConfig
from latentdiff.autoencoder.discriminator import DiscriminatorConfig
from latentdiff.autoencoder.loss import LossConfig
from latentdiff.build import build_autoencoder, build_diffusion
from latentdiff.conditioning.text import TextConfig
from latentdiff.config import UserError
from latentdiff.data import loader
from latentdiff.data.folder import FolderConfig
from latentdiff.data.latent_cache import LatentCacheConfig
from latentdiff.recipe import AutoencoderRecipe, DiffusionRecipe
from latentdiff.stage_one.adversarial import Adversarial
from latentdiff.stage_one.codebook import CodebookResetter
from latentdiff.stage_two.batches import BatchEncoder
from latentdiff.stage_two.components import open_tokenizer
from latentdiff.training.distributed import World, init_distributed
from latentdiff.training.log import Log
from latentdiff.training.settings import TrainConfig
from latentdiff.training.state import TrainState

CAPTION = "a large red star above a small blue circle on a gray background"


@dataclass(frozen=True)
class Size:
    pixels: int
    images: int  # in the folder
    text_batch: int
    autoencoder_batch: int
    frozen: AutoencoderConfig  # first stage of text-to-image
    trained: AutoencoderConfig
    text: TextConfig
    unet: str  # in networks.sizes()
    discriminator: DiscriminatorConfig


@cache
def sizes() -> dict[str, Size]:
    always = DiscriminatorConfig(start=0.0, train_from=0.0, ramp=0.0)
    text, quarter = TextConfig(dim=320, depth=4, heads=5, vocab_size=256), networks.autoencoder(0.25).config
    tiny = AutoencoderConfig(channels=8, channel_mult=(1, 1), num_res_blocks=1, norm_groups=4)
    return {
        "tiny": Size(16, 4, 2, 2, tiny, tiny, replace(text, dim=8, depth=1, heads=2, head_dim=4), "tiny",
                     replace(always, channels=8, layers=1)),
        "default": Size(256, 4, 2, 2, networks.autoencoder().config, quarter, text, "txt2img/4", always),
    }  # fmt: skip


def write_images(folder: Path, size: Size | SimpleNamespace) -> Path:
    """Write captioned JPEG images, smooth enough that JPEG and the networks have something to encode."""
    generator = np.random.default_rng(0)
    for i in range(size.images):
        low_res = Image.fromarray(generator.integers(0, 256, (8, 8, 3), np.uint8))
        low_res.resize((size.pixels + 16, size.pixels), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg")
        (folder / f"{i}.txt").write_text(CAPTION)
    return folder


TRAIN = TrainConfig(steps=10**6, lr=1e-4, log_every=10**6, val_every=10**6, sample_every=10**6, checkpoint_every=10**6,
                    cuda_graph=True)  # fmt: skip


def text_recipe(size: Size, data: Path) -> DiffusionRecipe:
    return DiffusionRecipe(name="bench", data=FolderConfig(path=str(data), size=size.pixels, val_fraction=0.0),
                           cache=LatentCacheConfig(path=str(data / "cache"), batch_size=4), conditions=(size.text,),
                           unet=networks.sizes()[size.unet].unet,
                           train=replace(TRAIN, batch_size=size.text_batch))  # fmt: skip


def autoencoder_recipe(size: Size, data: Path) -> AutoencoderRecipe:
    train = replace(TRAIN, batch_size=size.autoencoder_batch, betas=(0.5, 0.9), weight_decay=0.0, grad_clip=1.0)
    return AutoencoderRecipe(name="bench", data=FolderConfig(path=str(data), size=size.pixels, val_fraction=0.0),
                             autoencoder=size.trained, loss=LossConfig(perceptual=perceptual_config(size.pixels)),
                             discriminator=size.discriminator, train=train)  # fmt: skip


def perceptual_config(pixels: int) -> perceptual.LPIPSConfig | perceptual.MultiScaleConfig:
    """LPIPS of SqueezeNet; MultiScale if there are no weights, or for very small images."""
    if pixels < 64:
        return perceptual.MultiScaleConfig()
    try:
        perceptual.build(perceptual.LPIPSConfig("squeezenet"))
    except (UserError, OSError):
        return perceptual.MultiScaleConfig()
    return perceptual.LPIPSConfig("squeezenet")


def now() -> float:
    return time.process_time() if time_key() == "cpu_seconds" else time.perf_counter()


class LoopStub:
    """Replaces validator, bad-image list and stop signal of a loop; ends a repeat after every step."""

    def __init__(self, record) -> None:
        self.record, self.log, self.values = record, None, {}
        self.diagnostics = SimpleNamespace(check=lambda step, metrics: None)

    def add(self, bad: object) -> None:
        pass

    def requested(self, world: World) -> int:
        losses = {name: float(self.log.sums[name][0]) for name in ("loss", "nll") if name in self.log.sums}
        self.log.sums = {}
        self.record(**losses, **self.values)
        return 0


def import_script(name: str) -> ModuleType:
    """A script of the repository as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def positions(r: AutoencoderRecipe | DiffusionRecipe) -> list[range]:
    return loader.micro_batches(0, 1, r.train.batch_size, r.train.grad_accum_steps)


def run_latentdiff_text(record, size: str) -> None:
    """The loop of train_diffusion.py, after encoding the cache; the text encoder is frozen, as in the example."""
    train, world, stub, s = import_script("train_diffusion").train, init_distributed(), LoopStub(record), sizes()[size]
    record.reset_memory()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LATENTDIFF_RUNS"] = folder
        run = Path(folder) / "run"
        run.mkdir()
        r = text_recipe(s, write_images(Path(folder), s))
        data, stub.log = recipes.open_data(r, "train"), Log(run, world, 0, r.train)
        autoencoder = world.to_device(build_autoencoder(AutoencoderRecipe(autoencoder=s.frozen)))
        autoencoder.eval().requires_grad_(False)
        tokenizer = open_tokenizer(r, run, data, world, stub.log.info)
        model = networks.randomize_zeros(build_diffusion(r, autoencoder, tokenizer))
        model.conditioner.requires_grad_(False)
        state, start = TrainState(world.to_device(model, contiguous=True), r.train, world), now()
        fields = (r.conditions, r.derived_fields, model.conditioner.prepare)
        encode_batch = BatchEncoder(r, world, autoencoder, data, *fields, stub.log)
        stub.values["encode_seconds"] = (now() - start) / len(data)
        stub.log.start()
        train(r, world, state, encode_batch, positions(r), stub, stub, stub, stub.log)


def run_latentdiff_autoencoder(record, size: str) -> None:
    """The loop of train_autoencoder.py."""
    script, world, stub, s = import_script("train_autoencoder"), init_distributed(), LoopStub(record), sizes()[size]
    record.reset_memory()
    with tempfile.TemporaryDirectory() as folder:
        r = autoencoder_recipe(s, write_images(Path(folder), s))
        data, stub.log = recipes.open_data(r, "train"), Log(Path(folder), world, 0, r.train)
        distance = world.to_device(perceptual.build(r.loss.perceptual))
        model = build_autoencoder(r)
        adversarial = Adversarial(r.discriminator, r.train, world)
        autoencoder = TrainState(world.to_device(model), r.train, world)
        state = script.AutoencoderTrainState(
            autoencoder, adversarial, CodebookResetter(autoencoder, r.train.seed, world)
        )
        stub.log.start()
        script.train(r, world, state, data, positions(r), distance, stub, stub, stub, stub.log)


# ---- benchmarks


def text(repeats: float) -> list[Measurement]:
    options = {"size": "default", "warm_up": 5 if on_gpu() else 1}
    implementations = {
        "latentdiff": Implementation("training_loops:run_latentdiff_text", options),
        "diffusers": Implementation("diffusers_examples:text_to_image", options),
    }
    results = interleave(implementations, scaled(5, repeats))
    diffusers, latentdiff = results["diffusers"], results["latentdiff"]
    saved = [a[time_key()] - b[time_key()] for a, b in zip(diffusers, latentdiff)]
    encoding = latentdiff[0]["encode_seconds"] * sizes()["default"].text_batch
    return [
        spread(SPEEDUP, ratio(diffusers, latentdiff)),
        spread("memory, diffusers / latentdiff", ratio(diffusers, latentdiff, "memory")),
        single("epochs until the time for encoding the cache is saved", encoding / statistics.median(saved), "epochs"),
    ]


def autoencoder(repeats: float) -> list[Measurement]:
    options = {"size": "default", "warm_up": 5 if on_gpu() else 1}
    implementations = {
        "latentdiff": Implementation("training_loops:run_latentdiff_autoencoder", options),
        "diffusers": Implementation("diffusers_examples:autoencoder", options),
    }
    results = interleave(implementations, scaled(5, repeats))
    diffusers, latentdiff = results["diffusers"], results["latentdiff"]
    per_image = Spread.of([a[time_key()] / b[time_key()] / 2 for a, b in zip(diffusers, latentdiff)])
    return [
        spread(UPDATE_SPEEDUP, ratio(diffusers, latentdiff)),
        spread("the same per image read", per_image, note="diffusers' example reads two batches per update"),
        spread("memory, diffusers / latentdiff", ratio(diffusers, latentdiff, "memory")),
    ]


SPEEDUP = "speedup over diffusers' example"
UPDATE_SPEEDUP = "speedup over diffusers' example, per update of both networks"
BENCHMARKS = [
    Benchmark("training-loop-text", "the loop of train_diffusion.py on the latent cache, compared with that of "
              "diffusers' example on images: kl-f8 at full width, txt2img's U-Net at 1/4 width, 256 pixels, batch size "
              "2, frozen text encoder", text, {SPEEDUP: Target(3, 3)}),
    Benchmark("training-loop-autoencoder", "the loop of train_autoencoder.py, compared with that of diffusers' "
              "autoencoder example with its loss fixed: kl-f8 at 1/4 width, 256 pixels, batch size 2. One update is a "
              "step of each network on one batch. The example uses each batch for one of the two networks, latentdiff "
              "for both, so for the same number of images read the example has taken half of the steps",
              autoencoder, {UPDATE_SPEEDUP: Target(1.3, 1.3)}),
]  # fmt: skip
