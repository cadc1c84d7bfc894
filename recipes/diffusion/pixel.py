"""Shapes drawn pixel by pixel (LDM-1 in the paper): the same U-Net without an autoencoder, and dearer."""

from dataclasses import replace

from latentdiff.config import load
from latentdiff.recipe import FrozenAutoencoder

small = load("small.py")
recipe = replace(
    small,
    autoencoder=FrozenAutoencoder("recipes/autoencoder/pixel.py", statistics="data"),
    unet=replace(small.unet, channels=64, head_channels=32, patch=4),  # 8 x 8 places of 48 numbers
    schedule=replace(small.schedule, shift=4.0),  # more pixels hide less under the same noise
    # what is noise in a patch cannot all go through 64 channels, as predicting it would ask; without weights an error
    # of x0 at low noise, which is where edges are decided, counts for nothing (Li & He 2025)
    objective=replace(small.objective, prediction="x0", weighting="flow"),
    train=replace(small.train, steps=7500, batch_size=32),
    sampling=replace(small.sampling, sampler="ddpm", steps=50),
)
