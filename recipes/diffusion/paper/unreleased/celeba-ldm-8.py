"""CelebA-HQ, unconditional, f = 8 (paper, table 14): LDM-8 of the compression study."""

from dataclasses import replace

from latentdiff.config import load

base, cin = load("../celeba256.py"), load("cin-ldm-8.py")
recipe = replace(
    base,
    autoencoder=cin.autoencoder,
    unet=replace(cin.unet, head_channels=32),
    train=replace(base.train, steps=500_000, batch_size=96, lr=9.6e-5),
)
