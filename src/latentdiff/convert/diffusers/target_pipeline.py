"""The pipeline of diffusers that samples the same images as a run, or the reasons why there is none."""

from dataclasses import fields
from typing import NamedTuple

from latentdiff.autoencoder.autoencoder import Autoencoder
from latentdiff.conditioning.low_res import LowResConfig
from latentdiff.conditioning.text import TextConfig
from latentdiff.config import short_name
from latentdiff.convert.diffusers import noise_schedule, text_encoder, vae
from latentdiff.diffusion.sampling_config import SamplingConfig
from latentdiff.model import LatentDiffusion
from latentdiff.recipe import DiffusionRecipe

EXPRESSIBLE = (
    "sampler",
    "steps",
    "guidance_scale",
    "eta",
    "timestep_spacing",
)  # arguments, or options of the scheduler
FACTOR = 8  # pixels per latent position in LDMTextToImagePipeline


class TargetPipeline(NamedTuple):
    name: str  # its class; "": there is none
    stats: tuple[str, ...]  # options for the normalization of the latents that it reads
    problems: list[str]  # why it cannot express the run


def pipeline_for(recipe: DiffusionRecipe, model: LatentDiffusion, autoencoder: Autoencoder) -> TargetPipeline:
    """The pipeline for the conditions of a run."""
    conditions, (height, width) = [type(condition) for condition in recipe.conditions], recipe.data.image_size
    square = [f"the images are {width}x{height}, but its images are square"] if height != width else []
    if conditions == [TextConfig]:
        problems = _text_problems(recipe.conditions[0], model, autoencoder) + square
        return TargetPipeline("LDMTextToImagePipeline", ("scaling_factor",), problems)
    if conditions == [LowResConfig]:
        return TargetPipeline("LDMSuperResolutionPipeline", (), _low_res_problems(model, autoencoder))
    if conditions:
        names = ", ".join(map(short_name, conditions))
        return TargetPipeline("", vae.LATENT_STATS, [f"diffusers has none for conditions={names}"])
    if autoencoder.config.channel_mult:
        return TargetPipeline("LDMPipeline", ("scaling_factor",), square)
    normalized = bool((autoencoder.latent_shift != 0).any() or (autoencoder.latent_scale != 1).any())
    return TargetPipeline("DDIMPipeline", (), ["the pixels are normalized; its pixels are in [-1, 1]"] * normalized)


def _text_problems(text: TextConfig, model: LatentDiffusion, autoencoder: Autoencoder) -> list[str]:
    length, factor = text_encoder.LENGTH, autoencoder.factor
    problems = {
        "conditions.0.mask_padding is true; it must be false": text.mask_padding,
        f"conditions.0.max_length is {text.max_length}; it must be {length}": text.max_length != length,
        f"the autoencoder has factor {factor}; it must be {FACTOR}": factor != FACTOR,
        "the tokenizer is not BERT's": text_encoder.bert_vocabulary(model.conditioner.tokenizer) is None,
    }
    return [problem for problem, holds in problems.items() if holds]


def _low_res_problems(model: LatentDiffusion, autoencoder: Autoencoder) -> list[str]:
    ratio, channels = model.conditioner.parts[0].ratio, autoencoder.z_channels
    problems = {
        f"the latent has {ratio:g} times the size of low_res; it must have the same": ratio != 1,
        f"the latent has {channels} channels; it must have 3, like low_res": channels != 3,
        "the run is in pixel space; it must have an autoencoder": not autoencoder.config.channel_mult,
    }
    return [problem for problem, holds in problems.items() if holds]


def describe_call(pipeline: str, s: SamplingConfig, timesteps: int) -> list[str]:
    """The call that samples with the settings of the run, and which of them the pipeline does not follow."""
    call = f"num_inference_steps={s.steps}, eta={s.eta:g}"
    if pipeline == "LDMTextToImagePipeline":
        call = f"[prompt], {call}, guidance_scale={s.guidance_scale:g}"
    if pipeline == "LDMSuperResolutionPipeline":
        call = f"image, {call}"
    spacing = s.timestep_spacing
    different = {
        f"sampler={s.sampler} (there ddim)": s.sampler != "ddim",
        f"timestep_spacing={spacing} (there trailing)": spacing not in noise_schedule.SPACINGS,
        f"steps={s.steps}, which does not divide the {timesteps} timesteps": timesteps % s.steps != 0,
    } | {
        f"{f.name}={getattr(s, f.name)}": getattr(s, f.name) != f.default
        for f in fields(s)
        if f.name not in EXPRESSIBLE
    }
    return [f"{pipeline}: pipeline({call})"] + [
        f"sample.py differs in {setting}" for setting, holds in different.items() if holds
    ]
