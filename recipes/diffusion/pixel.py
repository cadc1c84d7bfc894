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
    # a place a pixel, narrow where there are many: most of the work lies at 8 x 8 and 4 x 4, where scenes are decided
    unet=replace(
        small.unet,
        channels=16,
        channel_mult=(1, 3, 6, 9),
        attention_levels=(2, 3),
        head_channels=24,
        norm_groups=8,
    ),
    schedule=replace(small.schedule, shift=4.0),  # more pixels hide less under the same noise
    # t lies about sigma = 1.2 alpha, where outlines are decided; places, at ten times that, are learned first
    objective=Objective(prediction="flow", timesteps="logit_normal", logit_mean=-1.2, logit_std=1.3, stratified=True),
    train=replace(small.train, steps=4500, lr=3e-3, decay_from=0.6, checkpoint_every=500, keep=16),
    sampling=replace(small.sampling, sampler="ddpm", steps=50),
)
