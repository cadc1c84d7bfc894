"""VQ, f = 4 without attention, for large images (paper, table 8): rFID 1.06, PSNR 25.21 after 658,131 steps."""

from dataclasses import replace

from latentdiff.config import load

base = load("vq-f4.py")
recipe = replace(
    base,
    autoencoder=replace(base.autoencoder, mid_attention=False),
    discriminator=replace(base.discriminator, train_from=11, start=11),
    train=replace(base.train, steps=658_131),
)
