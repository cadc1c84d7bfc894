"""Shapes drawn pixel by pixel (LDM-1 in the paper): the same U-Net without an autoencoder, and dearer."""

from dataclasses import replace

from latentdiff.config import load
from latentdiff.recipe import FrozenAutoencoder

small = load("small.py")
recipe = replace(
    small,
    autoencoder=FrozenAutoencoder("recipes/autoencoder/pixel.py", statistics="data"),
    data=replace(small.data, max_objects=1),
    # every pixel is a place, so the net is narrow there and wide where a place is 8 x 8 pixels
    unet=replace(
        small.unet, channels=16, channel_mult=(1, 2, 4, 8), attention_levels=(2, 3), head_channels=32, norm_groups=8
    ),
    schedule=replace(small.schedule, shift=4.0),  # more pixels hide less under the same noise
    # without weights an error of x0 at low noise, which is where edges are decided, counts for nothing
    objective=replace(small.objective, prediction="x0", weighting="flow"),
    train=replace(small.train, steps=8000, checkpoint_every=500, keep=16),
    sampling=replace(small.sampling, sampler="ddpm", steps=50),
)
