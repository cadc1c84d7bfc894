"""KL, f = 16, 16 channels (paper, table 8): rFID 0.87, PSNR 24.08 after 442,998 steps."""

from dataclasses import replace

from latentdiff.config import load

base = load("kl-f4.py")
recipe = replace(
    base,
    autoencoder=replace(base.autoencoder, channel_mult=(1, 1, 2, 2, 4), attention_levels=(4,), z_channels=16),
    train=replace(base.train, steps=442_998, batch_size=6, lr=2.7e-5),
)
