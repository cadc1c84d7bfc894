"""A text model that exports to diffusers as an LDMTextToImagePipeline, which then generates the same images."""

from dataclasses import replace

from latentdiff.conditioning.text import TextConfig
from latentdiff.config import load
from latentdiff.diffusion.loss import ObjectiveConfig
from latentdiff.diffusion.sampling_config import SamplingConfig
from latentdiff.diffusion.schedule import ScheduleConfig
from latentdiff.recipe import FrozenAutoencoderConfig

recipe = replace(
    load("tiny.py"),
    autoencoder=FrozenAutoencoderConfig("recipes/autoencoder/portable.py", latent_stats="data"),
    conditions=(
        # the pipeline uses 77 tokens and no padding mask
        TextConfig(dim=32, depth=1, heads=2, head_dim=16, max_length=77, vocab_size=128, mask_padding=False),
    ),
    schedule=ScheduleConfig(kind="scaled_linear"),
    objective=ObjectiveConfig(prediction="eps"),
    sampling=SamplingConfig("ddim", steps=20, guidance_scale=2.0),  # the scheduler of the pipeline; steps must divide T
)
