"""Which pipeline of diffusers can draw what a run draws, and what stands against it."""

from dataclasses import fields
from typing import NamedTuple

from latentdiff.conditioning.low_res import LowResConfig
from latentdiff.conditioning.text import TextConfig
from latentdiff.convert.diffusers import text_encoder, vae
from latentdiff.diffusion.sampling_config import SamplingConfig
from latentdiff.model import LatentDiffusion
from latentdiff.recipe import DiffusionRecipe

TOLD = ("sampler", "steps", "guidance_scale", "eta", "spacing")  # settings that a call or the scheduler holds
FACTOR = 8  # pixels per place of the latent, where LDMTextToImagePipeline begins to draw


class Pipeline(NamedTuple):
    kind: str  # its class; "": there is none
    reads: tuple[str, ...]  # of the statistics of the latents
    against: list[str]  # why it cannot express the run


def pipeline_for(recipe: DiffusionRecipe, model: LatentDiffusion) -> Pipeline:
    """The pipeline of diffusers for these conditions."""
    kinds, (height, width) = [type(condition) for condition in recipe.conditions], model.size
    square = [f"the pictures are {width}x{height}, and it draws squares"] if height != width else []
    if kinds == [TextConfig]:
        return Pipeline("LDMTextToImagePipeline", ("scaling_factor",), _against_text(recipe, model) + square)
    if kinds == [LowResConfig]:
        return Pipeline("LDMSuperResolutionPipeline", (), _against_low_res(model))
    if kinds:
        names = ", ".join(kind.__name__ for kind in kinds)
        return Pipeline("", vae.STATISTICS, [f"diffusers has none for conditions={names}"])
    if model.autoencoder.config.channel_mult:
        return Pipeline("LDMPipeline", ("scaling_factor",), square)
    moved = bool((model.autoencoder.latent_shift != 0).any() or (model.autoencoder.latent_scale != 1).any())
    return Pipeline("DDIMPipeline", (), ["the pixels are normalised, and it takes them from -1 to 1"] if moved else [])


def _against_text(recipe: DiffusionRecipe, model: LatentDiffusion) -> list[str]:
    text, factor = recipe.conditions[0], model.autoencoder.factor
    checks = {
        "conditions.0.mask_padding is true, and it masks none": text.mask_padding,
        f"conditions.0.max_length is {text.max_length}, and it pads to {text_encoder.LENGTH}": text.max_length
        != text_encoder.LENGTH,
        f"the latent is {factor} times smaller than the picture, and it wants {FACTOR}": factor != FACTOR,
        "the tokenizer is not as BERT's": text_encoder.vocabulary(model.tokenizer) is None,
    }
    return [reason for reason, holds in checks.items() if holds]


def _against_low_res(model: LatentDiffusion) -> list[str]:
    ratio, channels = model.conditioner.parts[0].ratio, model.autoencoder.z_channels
    checks = {
        f"low_res is {ratio:g} times smaller than the latent, and it wants them equal": ratio != 1,
        f"the latent has {channels} channels, and it wants as many as low_res has, 3": channels != 3,
        "the run works on pixels, and it wants an autoencoder": not model.autoencoder.config.channel_mult,
    }
    return [reason for reason, holds in checks.items() if holds]


def how_to_draw(kind: str, s: SamplingConfig, timesteps: int) -> list[str]:
    """The call that draws as the run's own settings do, and what of them diffusers' pipeline does otherwise."""
    call = f"num_inference_steps={s.steps}, eta={s.eta:g}"
    if kind == "LDMTextToImagePipeline":
        call = f"[prompt], {call}, guidance_scale={s.guidance_scale:g}"
    if kind == "LDMSuperResolutionPipeline":
        call = f"image, {call}"
    differs = {
        f"sampler={s.sampler}, where it has ddim": s.sampler != "ddim",
        f"timestep_spacing={s.timestep_spacing}, where it has trailing": s.timestep_spacing not in noise_schedule.GRIDS,
        f"steps={s.steps}, which does not divide the {timesteps} timesteps": timesteps % s.steps != 0,
    } | {f"{f.name}={getattr(s, f.name)}": getattr(s, f.name) != f.default for f in fields(s) if f.name not in TOLD}
    told = [what for what, holds in differs.items() if holds]
    return [f"{kind}: pipeline({call})"] + [f"sample.py draws otherwise by {what}" for what in told]
