"""KL, f = 8, 4 channels (paper, table 8): rFID 0.90, PSNR 24.19 after 246,803 steps."""

from dataclasses import replace

from latentdiff.config import load

base = load("kl-f4.py")
recipe = replace(
    base,
    autoencoder=replace(base.autoencoder, channel_mult=(1, 2, 4, 4), z_channels=4),
    train=replace(base.train, steps=246_803, batch_size=4, lr=1.8e-5),
)
