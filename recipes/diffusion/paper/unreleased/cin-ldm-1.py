"""ImageNet by class in pixel space (paper, table 13): LDM-1 of the compression study, the most expensive."""

from dataclasses import replace

from latentdiff.config import load

base = load("cin-ldm-2.py")
recipe = replace(
    base,
    autoencoder="recipes/autoencoder/paper/unreleased/identity.py",
    cache=replace(base.cache, enabled=False),  # it would hold every image in floating point
    unet=replace(base.unet, channel_mult=(1, 1, 2, 2, 4, 4), attention_levels=(3, 4, 5)),
    train=replace(base.train, batch_size=7, lr=4.9e-5),
)
