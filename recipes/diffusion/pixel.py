"""Shapes drawn pixel by pixel (LDM-1 in the paper): the same U-Net without an autoencoder, and dearer."""

from dataclasses import replace

from latentdiff.config import load
from latentdiff.latent_diffusion import Objective
from latentdiff.recipe import FrozenAutoencoder

small = load("small.py")
recipe = replace(
    small,
    autoencoder=FrozenAutoencoder("recipes/autoencoder/pixel.py", statistics="data"),
    data=replace(small.data, max_objects=1),
    # 16 x 16 places of 12 numbers: most of the work lies where what is drawn, and where, is decided
    unet=replace(small.unet, patch=2, channel_mult=(1, 2, 3), attention_levels=(1, 2)),
    schedule=replace(small.schedule, shift=6.0),  # more pixels hide less under the same noise
    # without weights an error of x0 at low noise, where edges are decided, counts for nothing (Li & He 2025)
    objective=Objective(prediction="x0", weighting="flow", timesteps="logit_normal", logit_std=1.3, stratified=True),
    train=replace(small.train, steps=6500, checkpoint_every=500, keep=13),
    sampling=replace(small.sampling, sampler="ddpm", steps=50),
)
