"""Sampling: from a prompt to a PNG file."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image

from benchmarks.speed import machine, networks
from benchmarks.speed.benchmark import Benchmark, Measurement, Target, scaled, spread
from benchmarks.speed.interleave import Implementation, interleave, ratio
from latentdiff.autoencoder.autoencoder import AutoencoderConfig
from latentdiff.build import build_autoencoder, build_diffusion
from latentdiff.conditioning.text import TextConfig
from latentdiff.convert.diffusers import export_run
from latentdiff.data.folder import FolderConfig
from latentdiff.data.tokenizer import SPECIALS, CaptionTokenizer, wordpiece
from latentdiff.diffusion.sampling_config import SamplingConfig
from latentdiff.diffusion.unet import UNetConfig
from latentdiff.recipe import AutoencoderRecipe, DiffusionRecipe
from latentdiff.sampling.pipeline import Pipeline, SampleNoise, pipeline_of
from latentdiff.training import image_grid, precision
from latentdiff.training.precision import autocast

PROMPT = "a large red star above a small blue circle on a gray background"
SETTINGS = SamplingConfig(sampler="ddim", steps=50, guidance_scale=4.0)


@dataclass(frozen=True)
class Size:
    unet: UNetConfig
    autoencoder: AutoencoderConfig
    text: TextConfig
    pixels: int


def sizes() -> dict[str, Size]:
    """With an f = 8 autoencoder and unmasked captions of 77 tokens, as LDMTextToImagePipeline requires."""
    networks_sizes, text = networks.sizes(), TextConfig(vocab_size=64, max_length=77, mask_padding=False)
    small = AutoencoderConfig(channels=16, channel_mult=(1, 2, 4, 4), num_res_blocks=1, norm_groups=8)
    tiny = AutoencoderConfig(channels=8, channel_mult=(1, 1, 1, 1), num_res_blocks=1, norm_groups=4)
    return {
        "tiny": Size(networks_sizes["tiny"].unet, tiny, replace(text, dim=8, depth=1, heads=2, head_dim=4), 32),
        "demo": Size(networks_sizes["demo"].unet, small, replace(text, dim=128, depth=3, heads=4, head_dim=32), 64),
        "txt2img/4": Size(networks_sizes["txt2img/4"].unet, networks.autoencoder(0.25).config,
                          replace(text, dim=320, depth=8, heads=8, head_dim=40), 256),
    }  # fmt: skip


def build_pipeline(name: str) -> tuple[DiffusionRecipe, Pipeline]:
    """A text-to-image model with random weights."""
    size = sizes()[name]
    recipe = DiffusionRecipe(
        name="bench", data=FolderConfig(size=size.pixels), conditions=(size.text,), unet=size.unet, sampling=SETTINGS
    )
    tokenizer = CaptionTokenizer(wordpiece([*SPECIALS, *sorted(set(PROMPT.split()))]), size.text.max_length)
    autoencoder = build_autoencoder(AutoencoderRecipe(autoencoder=size.autoencoder))
    autoencoder.set_latent_stats(0.0, 0.18215)
    pipeline = pipeline_of(recipe, build_diffusion(recipe, autoencoder, tokenizer), autoencoder)
    return recipe, networks.randomize_zeros(pipeline).eval().requires_grad_(False)


def run_latentdiff(record, size: str, batch: int, **settings) -> None:
    """What sample.py does for one batch."""
    record.reset_memory()
    _, pipeline = build_pipeline(size)
    pipeline = precision.to_device(pipeline, machine.device())
    pipeline.model.cast_weights(machine.dtype())
    path = Path(tempfile.mkdtemp()) / "0.png"
    settings = replace(pipeline.model.sampling, **settings)
    while True:
        with autocast(machine.device(), machine.dtype()):
            fields = pipeline.prepare({"caption": [PROMPT] * batch})
            images = image_grid.to_uint8(pipeline.generate(fields, list(range(batch)), settings))
        for image in images:
            Image.fromarray(image).save(path)
        record(image=images[0].flatten().tolist()[:: max(1, images[0].size // 64)])


def run_diffusers(record, size: str, batch: int, steps: int = 50, guidance_scale: float = 4.0) -> None:
    """LDMTextToImagePipeline with DDIMScheduler, exported from latentdiff, from the same noise."""
    from diffusers import LDMTextToImagePipeline

    record.reset_memory()
    recipe, source = build_pipeline(size)
    with tempfile.TemporaryDirectory() as folder:
        export_run.write_diffusion(Path(folder), recipe, source.model, source.autoencoder)
        pipeline = LDMTextToImagePipeline.from_pretrained(folder).to(machine.device())
    pipeline.set_progress_bar_config(disable=True)
    pipeline.vqvae.decoder.register_forward_hook(lambda module, z, x: x.float())  # it cannot convert bfloat16 to images
    noise, path = SampleNoise(list(range(batch)), source.latent_shape(), machine.device())(), Path(tempfile.mkdtemp())
    options = {"num_inference_steps": steps, "guidance_scale": guidance_scale, "latents": noise}
    while True:
        with torch.no_grad(), autocast(machine.device(), machine.dtype()):
            images = pipeline([PROMPT] * batch, **options).images
        for image in images:
            image.save(path / "0.png")
        first = list(images[0].tobytes())
        record(image=first[:: max(1, len(first) // 64)])


# ---- benchmarks

FEW_STEPS = {"sampler": "unipc", "steps": 8}
NOTE = "equal quality on the demo: few-steps-demo.json"  # from python -m benchmarks few_steps demo


def benchmark(name: str, description: str, cases: dict[str, tuple], few_steps: bool = False) -> Benchmark:
    """cases: name -> size, batch size, steps, repeats; few_steps: latentdiff uses its best settings instead."""

    def measure(repeats: float) -> list[Measurement]:
        measurements = []
        for case, (size, batch, steps, default_repeats) in cases.items():
            options = {"size": size, "batch": batch, "steps": steps}
            implementations = {
                "latentdiff": Implementation("sampling:run_latentdiff", options | (FEW_STEPS if few_steps else {})),
                "diffusers": Implementation("sampling:run_diffusers", options),
            }
            results = interleave(implementations, scaled(default_repeats, repeats))
            speedup = ratio(results["diffusers"], results["latentdiff"])
            measurements.append(spread(case, speedup, note=NOTE if few_steps else ""))
        return measurements

    return Benchmark(name, description, measure, dict.fromkeys(cases, Target(6, 6) if few_steps else Target(1.2, 1.5)))


DEMO, LARGE = "demo size, 64 pixels", "txt2img at 1/4 width, 256 pixels"
SAME = "prompt to PNG with guidance: speedup over LDMTextToImagePipeline with the same sampler (DDIM) and steps"
BENCHMARKS = [
    benchmark("sample-1", f"{SAME}, batch size 1", {f"{DEMO}, 50 steps": ("demo", 1, 50, 7),
                                                    f"{LARGE}, 10 steps": ("txt2img/4", 1, 10, 5)}),
    benchmark("sample-16", f"{SAME}, batch size 16", {f"{DEMO}, 20 steps": ("demo", 16, 20, 7),
                                                      f"{LARGE}, 2 steps": ("txt2img/4", 16, 2, 3)}),
    benchmark("sample-best", f"prompt to PNG with guidance: speedup of {FEW_STEPS['steps']} steps of "
              f"{FEW_STEPS['sampler']} over 50 steps of DDIM in LDMTextToImagePipeline",
              {f"{DEMO}, batch size 1": ("demo", 1, 50, 7)}, few_steps=True),
]  # fmt: skip
