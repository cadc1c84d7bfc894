"""A text model that diffusers can express whole, as its LDMTextToImagePipeline: export it, and both draw the same."""

from dataclasses import replace

from latentdiff.conditioning.text import Text
from latentdiff.config import load
from latentdiff.diffusion.schedule import ScheduleConfig
from latentdiff.model import Objective, Sampling
from latentdiff.recipe import FrozenAutoencoder

recipe = replace(
    load("tiny.py"),
    autoencoder=FrozenAutoencoder("recipes/autoencoder/portable.py", statistics="data"),
    conditions=(
        # the pipeline reads 77 tokens and masks none
        Text(dim=32, depth=1, heads=2, head_dim=16, length=77, vocab_size=128, mask_padding=False),
    ),
    schedule=ScheduleConfig(kind="scaled_linear"),
    objective=Objective(prediction="eps"),
    sampling=Sampling("ddim", steps=20, guidance_scale=2.0),  # its scheduler; steps that divide the timesteps
)
