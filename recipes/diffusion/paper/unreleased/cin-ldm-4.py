"""ImageNet by class, f = 4 (paper, table 13): LDM-4 of the compression study; cin256-v2 trains this U-Net longer."""

from dataclasses import replace

from latentdiff.config import load

base = load("cin-ldm-8.py")
recipe = replace(
    base,
    autoencoder="vq-f4-autoencoder",
    unet=replace(base.unet, channels=192, channel_mult=(1, 2, 3, 5), attention_levels=(1, 2, 3)),
    train=replace(base.train, batch_size=40, lr=8e-5),
)
