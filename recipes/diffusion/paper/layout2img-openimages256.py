"""Layout to image on OpenImages (paper, table 9): FID 32.02."""

from dataclasses import replace

from latentdiff.conditioning.layout import LayoutConfig
from latentdiff.config import load
from latentdiff.diffusion.loss import ObjectiveConfig
from latentdiff.diffusion.unet import UNetConfig

base = load("celeba256.py")
recipe = replace(
    base,
    data=replace(base.data, path="data/openimages"),
    conditions=(LayoutConfig(classes=601, objects=30, dim=512, depth=16, vocab_size=8192, dropout=0.0),),
    # one head of full width, as trained; later versions of the release read its config as heads of 32 channels
    unet=UNetConfig(
        channels=128, channel_mult=(1, 2, 3, 4), attention_levels=(1, 2, 3), num_heads=1, transformer_depth=3
    ),
    schedule=replace(base.schedule, beta_end=0.0205),
    objective=ObjectiveConfig(loss="l1"),  # as in the released config; the paper says L2
    train=replace(base.train, steps=4_400_000, batch_size=24, lr=4.8e-5),
)
