"""CelebA-HQ, unconditional, f = 2 (paper, table 14): LDM-2 of the compression study."""

from dataclasses import replace

from latentdiff.config import load

base, cin = load("../celeba256.py"), load("cin-ldm-2.py")
recipe = replace(
    base,
    autoencoder=cin.autoencoder,
    unet=replace(cin.unet, head_channels=32),
    train=replace(base.train, steps=500_000, batch_size=11, lr=1.1e-4),
)
