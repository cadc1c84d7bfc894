"""Text to image, trained on Conceptual Captions: FID 16.79 on it with 100 steps of DDIM (the release's README)."""

from dataclasses import replace

from latentdiff.conditioning.text import TextConfig
from latentdiff.config import load
from latentdiff.diffusion.unet import UNetConfig

base = load("celeba256.py")
recipe = replace(
    base,
    data=replace(base.data, path="data/cc3m"),
    # padding tokens are attended to, and captions are never dropped, as in the original
    conditions=(TextConfig(dim=640, depth=32, mask_padding=False, dropout=0.0),),
    # one head of full width, as trained; later versions of the release read its config as heads of 32 channels
    unet=UNetConfig(channels=192, channel_mult=(1, 2, 3, 5), attention_levels=(1, 2, 3), num_heads=1),
    train=replace(base.train, steps=400_000, batch_size=28, lr=5.6e-5),  # the number of steps is not published
    sampling=replace(base.sampling, steps=100),
)
