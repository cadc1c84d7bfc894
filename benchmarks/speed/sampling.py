"""Sampling: from a prompt to a PNG on the disk."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image

from benchmarks.speed import machine, networks
from benchmarks.speed.race import Contestant, race, ratio
from benchmarks.speed.work import Bar, Row, Work, row, times
from latentdiff.autoencoder.autoencoder import AutoencoderConfig
from latentdiff.build import build_autoencoder, build_diffusion
from latentdiff.conditioning.text import TextConfig
from latentdiff.convert.diffusers import export_run
from latentdiff.data.folder import FolderConfig
from latentdiff.data.tokenizer import SPECIALS, CaptionTokenizer, wordpiece
from latentdiff.diffusion.unet import UNetConfig
from latentdiff.sampling.pipeline import SampleNoise
from latentdiff.diffusion.sampling_config import SamplingConfig
from latentdiff.model import LatentDiffusion
from latentdiff.recipe import AutoencoderRecipe, DiffusionRecipe
from latentdiff.training import image_grid, precision
from latentdiff.training.precision import autocast

PROMPT = "a large red star above a small blue circle on a gray background"
SETTINGS = SamplingConfig(sampler="ddim", steps=50, guidance_scale=4.0)


@dataclass(frozen=True)
class Model:
    unet: UNetConfig
    autoencoder: AutoencoderConfig
    text: TextConfig
    pixels: int


def models() -> dict[str, Model]:
    """An f = 8 autoencoder and unmasked captions of 77 tokens: what LDMTextToImagePipeline can draw with."""
    sizes, text = networks.sizes(), TextConfig(vocab_size=64, max_length=77, mask_padding=False)
    small = AutoencoderConfig(channels=16, channel_mult=(1, 2, 4, 4), num_res_blocks=1, norm_groups=8)
    tiny = AutoencoderConfig(channels=8, channel_mult=(1, 1, 1, 1), num_res_blocks=1, norm_groups=4)
    return {
        "tiny": Model(sizes["tiny"].unet, tiny, replace(text, dim=8, depth=1, heads=2, head_dim=4), 32),
        "demo": Model(sizes["demo"].unet, small, replace(text, dim=128, depth=3, heads=4, head_dim=32), 64),
        "txt2img/4": Model(sizes["txt2img/4"].unet, networks.autoencoder(0.25).config,
                           replace(text, dim=320, depth=8, heads=8, head_dim=40), 256),
    }  # fmt: skip


def build(name: str) -> tuple[DiffusionRecipe, LatentDiffusion]:
    """A text-to-image run of random weights."""
    m = models()[name]
    recipe = DiffusionRecipe(
        name="bench", data=FolderConfig(size=m.pixels), conditions=(m.text,), unet=m.unet, sampling=SETTINGS
    )
    tokenizer = CaptionTokenizer(wordpiece([*SPECIALS, *sorted(set(PROMPT.split()))]), m.text.max_length)
    autoencoder = build_autoencoder(AutoencoderRecipe(autoencoder=m.autoencoder))
    autoencoder.set_latent_stats(0.0, 0.18215)
    model = build_diffusion(recipe, autoencoder, tokenizer)
    model.autoencoder, model.tokenizer, model.size = autoencoder, tokenizer, (m.pixels, m.pixels)
    return recipe, networks.awake(model).eval().requires_grad_(False)


def ours(done, model: str, batch: int, **settings) -> None:
    """What sample.py does for one batch."""
    done.settled()
    _, drawer = build(model)
    drawer = precision.to_device(drawer, machine.device()).cast_weights(machine.dtype())
    path = Path(tempfile.mkdtemp()) / "0.png"
    chosen, seeds = replace(drawer.sampling, **settings), list(range(batch))
    while True:
        with torch.no_grad(), autocast(machine.device(), machine.dtype()):
            for z in drawer.draw(drawer.tokens([PROMPT] * batch), seeds, drawer.latent_shape(), chosen):
                pass
            drawn = image_grid.to_uint8(drawer.autoencoder.decode(z))
        for image in drawn:
            Image.fromarray(image).save(path)
        done(picture=drawn[0].flatten().tolist()[:: max(1, drawn[0].size // 64)])


def theirs(done, model: str, batch: int, steps: int = 50, guidance_scale: float = 4.0) -> None:
    """diffusers' LDMTextToImagePipeline with its DDIMScheduler, as our exporter writes it, from the same noise."""
    from diffusers import LDMTextToImagePipeline

    done.settled()
    recipe, drawer = build(model)
    with tempfile.TemporaryDirectory() as folder:
        export_run.write_diffusion(Path(folder), recipe, drawer, drawer.autoencoder)
        pipeline = LDMTextToImagePipeline.from_pretrained(folder).to(machine.device())
    pipeline.set_progress_bar_config(disable=True)
    pipeline.vqvae.decoder.register_forward_hook(lambda module, z, x: x.float())  # it makes no picture of bfloat16
    noise, path = Noise(list(range(batch)), drawer.latent_shape(), machine.device())(), Path(tempfile.mkdtemp())
    told = {"num_inference_steps": steps, "guidance_scale": guidance_scale, "latents": noise}
    while True:
        with torch.no_grad(), autocast(machine.device(), machine.dtype()):
            drawn = pipeline([PROMPT] * batch, **told).images
        for image in drawn:
            image.save(path / "0.png")
        first = list(drawn[0].tobytes())
        done(picture=first[:: max(1, len(first) // 64)])


# ---- works

FEW = {"sampler": "unipc", "steps": 8}
EQUAL = "of equal quality on the demo: few-steps-demo.json"  # made by python -m benchmarks few_steps demo


def work(name: str, says: str, cases: dict[str, tuple[str, int, int, int]], few: bool = False) -> Work:
    """cases: what -> model, batch, steps, repeats; few: ours takes its best settings instead."""

    def measure(share: float) -> list[Row]:
        found = []
        for what, (model, batch, steps, repeats) in cases.items():
            told = {"model": model, "batch": batch, "steps": steps}
            field = {"ours": Contestant("sampling:ours", told | (FEW if few else {})),
                     "diffusers": Contestant("sampling:theirs", told)}  # fmt: skip
            turns = race(field, times(repeats, share))
            found.append(row(what, ratio(turns["diffusers"], turns["ours"]), note=EQUAL if few else ""))
        return found

    return Work(name, says, measure, dict.fromkeys(cases, Bar(6, 6) if few else Bar(1.2, 1.5)))


DEMO, LARGER = "the demo's size, 64 pixels", "txt2img at 1/4 width, 256 pixels"
SAME = "prompt to PNG, guided, against LDMTextToImagePipeline with the same sampler (DDIM) and steps"
WORKS = [
    work("sample-1", f"{SAME}, batch 1", {f"{DEMO}, 50 steps": ("demo", 1, 50, 7),
                                          f"{LARGER}, 10 steps": ("txt2img/4", 1, 10, 5)}),
    work("sample-16", f"{SAME}, batch 16", {f"{DEMO}, 20 steps": ("demo", 16, 20, 7),
                                            f"{LARGER}, 2 steps": ("txt2img/4", 16, 2, 3)}),
    work("sample-best", f"prompt to PNG, guided: {FEW['steps']} steps of {FEW['sampler']} against DDIM's 50 of "
         "LDMTextToImagePipeline", {f"{DEMO}, batch 1": ("demo", 1, 50, 7)}, few=True),
]  # fmt: skip
