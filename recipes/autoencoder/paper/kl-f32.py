"""KL, f = 32, 64 channels (paper, table 8): rFID 2.04, PSNR 22.27 after 406,763 steps."""

from dataclasses import replace

from latentdiff.config import load

base = load("kl-f4.py")
recipe = replace(
    base,
    autoencoder=replace(base.autoencoder, channel_mult=(1, 1, 2, 2, 4, 4), attention_levels=(4, 5), z_channels=64),
    train=replace(base.train, steps=406_763, batch_size=6, lr=2.7e-5),
)
