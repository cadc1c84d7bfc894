"""CelebA-HQ, unconditional, f = 16 (paper, table 14): LDM-16 of the compression study."""

from dataclasses import replace

from latentdiff.config import load

base, cin = load("../celeba256.py"), load("cin-ldm-16.py")
recipe = replace(
    base,
    autoencoder=cin.autoencoder,
    unet=replace(cin.unet, head_channels=32),
    train=replace(base.train, steps=500_000, batch_size=128, lr=1.3e-4),
)
