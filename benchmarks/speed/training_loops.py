"""Training as it ships: our two loops as they stand in the scripts, beside the loops of diffusers' examples."""

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
from benchmarks.speed.race import ROOT, Contestant, Spread, clock, race, ratio
from benchmarks.speed.work import Bar, Row, Work, on_gpu, once, row, times
from latentdiff import recipe as recipes
from latentdiff.autoencoder import perceptual
from latentdiff.autoencoder.autoencoder import AutoencoderConfig
from latentdiff.autoencoder.discriminator import DiscriminatorConfig
from latentdiff.autoencoder.loss import LossConfig
from latentdiff.build import build_autoencoder, build_diffusion, open_tokenizer
from latentdiff.conditioning.text import TextConfig
from latentdiff.config import UserError
from latentdiff.data.folder import FolderConfig
from latentdiff.data.latent_cache import LatentCacheConfig
from latentdiff.recipe import AutoencoderRecipe, DiffusionRecipe
from latentdiff.stage_two.batches import BatchEncoder
from latentdiff.training.distributed import World, init_distributed
from latentdiff.training.log import Log
from latentdiff.training.settings import TrainConfig
from latentdiff.training.state import TrainState

CAPTION = "a large red star above a small blue circle on a gray background"


@dataclass(frozen=True)
class Size:
    pixels: int
    pictures: int  # in the folder
    text_batch: int
    autoencoder_batch: int
    frozen: AutoencoderConfig  # first stage of text-to-image
    trained: AutoencoderConfig
    text: TextConfig
    unet: str  # in networks.sizes()
    critic: DiscriminatorConfig


@cache
def sizes() -> dict[str, Size]:
    always = DiscriminatorConfig(start=0.0, train_from=0.0, ramp=0.0)
    text, quarter = TextConfig(dim=320, depth=4, heads=5, vocab_size=256), networks.autoencoder(0.25).config
    tiny = AutoencoderConfig(channels=8, channel_mult=(1, 1), num_res_blocks=1, norm_groups=4)
    return {
        "tiny": Size(16, 4, 2, 2, tiny, tiny, replace(text, dim=8, depth=1, heads=2, head_dim=4), "tiny",
                     replace(always, channels=8, layers=1)),
        "usual": Size(256, 4, 2, 2, networks.autoencoder().config, quarter, text, "txt2img/4", always),
    }  # fmt: skip


def pictures(folder: Path, size: Size) -> Path:
    """A folder of captioned pictures, smooth enough that JPEG and the networks have something to do."""
    draw = np.random.default_rng(0)
    for i in range(size.pictures):
        coarse = Image.fromarray(draw.integers(0, 256, (8, 8, 3), np.uint8))
        coarse.resize((size.pixels + 16, size.pixels), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg")
        (folder / f"{i}.txt").write_text(CAPTION)
    return folder


def text_recipe(size: Size, data: Path) -> DiffusionRecipe:
    train = TrainConfig(steps=10**6, batch_size=size.text_batch, lr=1e-4, log_every=10**6, val_every=10**6,
                  sample_every=10**6, checkpoint_every=10**6, cuda_graph=True)  # fmt: skip
    return DiffusionRecipe(name="bench", data=FolderConfig(path=str(data), size=size.pixels, val_fraction=0.0),
                           cache=LatentCacheConfig(path=str(data / "cache"), batch_size=4), conditions=(size.text,),
                           unet=networks.sizes()[size.unet].unet, train=train)  # fmt: skip


def autoencoder_recipe(size: Size, data: Path) -> AutoencoderRecipe:
    train = TrainConfig(steps=10**6, batch_size=size.autoencoder_batch, lr=1e-4, betas=(0.5, 0.9), weight_decay=0.0, grad_clip=1.0,
                  log_every=10**6, val_every=10**6, sample_every=10**6, checkpoint_every=10**6, cuda_graph=True)  # fmt: skip
    return AutoencoderRecipe(name="bench", data=FolderConfig(path=str(data), size=size.pixels, val_fraction=0.0),
                             autoencoder=size.trained, loss=LossConfig(perceptual=distance(size.pixels)),
                             discriminator=size.critic, train=train)  # fmt: skip


def distance(pixels: int) -> perceptual.LPIPSConfig | perceptual.MultiScaleConfig:
    """LPIPS where weights are at hand, of SqueezeNet; else, and for very small pictures, the term that needs none."""
    if pixels < 64:
        return perceptual.MultiScaleConfig()
    try:
        perceptual.build(perceptual.LPIPSConfig("squeezenet"))
    except (UserError, OSError):
        return perceptual.MultiScaleConfig()
    return perceptual.LPIPSConfig("squeezenet")


def now() -> float:
    return time.process_time() if clock() == "processor" else time.perf_counter()


class Bench:
    """What the loops are given in place of what watches and stops a run: it ends a turn after every step."""

    def __init__(self, done) -> None:
        self.done, self.log, self.facts = done, None, {}
        self.diagnostics = SimpleNamespace(check=lambda step, metrics: None)
        self.bad = SimpleNamespace(note=lambda bad: None)

    def requested(self, world: World) -> int:
        losses = {name: float(self.log.sums[name][0]) for name in ("loss", "nll") if name in self.log.sums}
        self.log.sums = {}
        self.done(**losses, **self.facts)
        return 0


def script(name: str) -> ModuleType:
    """A script of the repository as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def text_to_image(size: Size, data: Path, world: World, bench: Bench) -> tuple:
    """All that train_diffusion.train is given; the text encoder is frozen, as in the example."""
    r, rows = text_recipe(size, data), None
    rows = recipes.open_data(r, "train")
    bench.log = Log(data / "run", world, 0, r.train)
    autoencoder = world.to_device(build_autoencoder(AutoencoderRecipe(autoencoder=size.frozen)))
    autoencoder.eval().requires_grad_(False)
    tokenizer = open_tokenizer(r, data / "run", rows, world, bench.log.info)
    model = networks.awake(build_diffusion(r, autoencoder, tokenizer))
    model.conditioner.requires_grad_(False)
    learner, began = TrainState(world.to_device(model, contiguous=True), r.train, world), now()
    latents = BatchEncoder(r, world, autoencoder, tokenizer, rows, bench.log)
    bench.facts["filling"] = (now() - began) / len(rows)
    bench.log.start()
    return r, world, learner, latents, bench, bench, bench.log


def ours_text(done, size: str) -> None:
    """train_diffusion.py's loop, on the cache that it fills before."""
    train, world, bench = script("train_diffusion").train, init_distributed(), Bench(done)
    done.settled()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LATENTDIFF_RUNS"] = folder
        (Path(folder) / "run").mkdir()
        train(*text_to_image(sizes()[size], pictures(Path(folder), sizes()[size]), world, bench))


def ours_autoencoder(done, size: str) -> None:
    """train_autoencoder.py's loop."""
    stage, world, bench = script("train_autoencoder"), init_distributed(), Bench(done)
    done.settled()
    with tempfile.TemporaryDirectory() as folder:
        r = autoencoder_recipe(sizes()[size], pictures(Path(folder), sizes()[size]))
        data, bench.log = recipes.open_data(r, "train"), Log(Path(folder), world, 0, r.train)
        parts = stage.build(r, world, build_autoencoder(r), perceptual.build(r.loss.perceptual))
        bench.log.start()
        stage.train(r, world, parts, data, bench, bench, bench.log)


# ---- works


def text_work(share: float) -> list[Row]:
    told = {"size": "usual", "warm_up": 5 if on_gpu() else 1}
    field = {"ours": Contestant("shipped:ours_text", told), "diffusers": Contestant("examples:text_to_image", told)}
    turns = race(field, times(5, share))
    saved = [a[clock()] - b[clock()] for a, b in zip(turns["diffusers"], turns["ours"])]
    filling = turns["ours"][0]["filling"] * sizes()["usual"].text_batch
    return [
        row("against diffusers' example", ratio(turns["diffusers"], turns["ours"])),
        row("diffusers' memory against ours", ratio(turns["diffusers"], turns["ours"], "memory")),
        once("epochs after which the cache has paid for itself", filling / statistics.median(saved), "epochs"),
    ]


def autoencoder_work(share: float) -> list[Row]:
    told = {"size": "usual", "warm_up": 5 if on_gpu() else 1}
    field = {
        "ours": Contestant("shipped:ours_autoencoder", told),
        "diffusers": Contestant("examples:autoencoder", told),
    }
    turns = race(field, times(5, share))
    per_picture = Spread.of([a[clock()] / b[clock()] / 2 for a, b in zip(turns["diffusers"], turns["ours"])])
    return [
        row("against diffusers' example, for an update of both networks", ratio(turns["diffusers"], turns["ours"])),
        row("the same for each picture that is read", per_picture, note="theirs reads two batches for it"),
        row("diffusers' memory against ours", ratio(turns["diffusers"], turns["ours"], "memory")),
    ]


WORKS = [
    Work("shipped-text", "stage two as shipped: kl-f8 at full width, txt2img's U-Net at 1/4 width, 256 pixels, "
         "batch 2, frozen text encoder: our loop on the cache, their example's loop on pictures", text_work,
         {"against diffusers' example": Bar(3, 3)}),
    Work("shipped-autoencoder", "stage one as shipped: kl-f8 at 1/4 width, 256 pixels, batch 2: our loop, and that of "
         "their autoencoder example with its loss mended. Counted is one step of each network, of one batch each: they "
         "take every batch for one of the two, we for both, so that they have taken half the steps when as many "
         "pictures are read", autoencoder_work,
         {"against diffusers' example, for an update of both networks": Bar(1.3, 1.3)}),
]  # fmt: skip
