"""ImageNet by class, f = 2 (paper, table 13): LDM-2 of the compression study."""

from dataclasses import replace

from latentdiff.config import load

base = load("cin-ldm-8.py")
recipe = replace(
    base,
    autoencoder="vq-f2-autoencoder",
    unet=replace(base.unet, channels=192, channel_mult=(1, 2, 2, 4, 4), attention_levels=(2, 3, 4)),
    train=replace(base.train, batch_size=9, lr=6.3e-5),
)
