"""Shapes drawn pixel by pixel (LDM-1 in the paper): the same U-Net without an autoencoder, and dearer."""

from dataclasses import replace

from latentdiff.config import load
from latentdiff.recipe import FrozenAutoencoder

small = load("small.py")
recipe = replace(
    small,
    autoencoder=FrozenAutoencoder("recipes/autoencoder/pixel.py", statistics="data"),
    unet=replace(
        small.unet, channels=24, channel_mult=(1, 2, 4), attention_levels=(2,), head_channels=24, norm_groups=8
    ),
    schedule=replace(small.schedule, shift=4.0),  # more pixels hide less under the same noise
    # a narrow net cannot hand the noise of 3,072 numbers through, as predicting it would ask
    objective=replace(small.objective, prediction="x0", timesteps="logit_normal"),
    train=replace(small.train, steps=4500),
)
