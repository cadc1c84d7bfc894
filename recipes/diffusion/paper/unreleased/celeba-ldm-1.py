"""CelebA-HQ, unconditional, in pixel space (paper, table 14): LDM-1 of the compression study. LDM-4 is celeba256.py."""

from dataclasses import replace

from latentdiff.config import load

base, cin = load("../celeba256.py"), load("cin-ldm-1.py")
recipe = replace(
    base,
    autoencoder=cin.autoencoder,
    cache=cin.cache,
    unet=replace(cin.unet, head_channels=32),
    train=replace(base.train, steps=500_000, batch_size=9, lr=9e-5),
)
