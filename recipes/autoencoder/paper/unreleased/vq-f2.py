"""VQ, f = 2, 2048 codes of 2 channels (paper, table 8): rFID 0.16, PSNR 30.85. Network and steps: not published."""

from dataclasses import replace

from latentdiff.config import load

base = load("../vq-f4.py")
recipe = replace(
    base,
    autoencoder=replace(
        base.autoencoder,
        channel_mult=(1, 2),
        z_channels=2,
        bottleneck=replace(base.autoencoder.bottleneck, codebook_size=2048),
    ),
)
