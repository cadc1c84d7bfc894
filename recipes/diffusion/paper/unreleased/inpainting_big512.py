"""Inpainting at 512 pixels: inpainting_big fine-tuned for half an epoch (paper, table 7), FID 2.40 to 1.50."""

from dataclasses import replace

from latentdiff.config import load

base = load("../inpainting_big.py")
recipe = replace(
    base,
    data=replace(base.data, size=512),
    init="inpainting_big",
    # half of the 1.8 million images of Places; batch size and learning rate are not published: a quarter, at 4x pixels
    train=replace(base.train, steps=28_000, batch_size=32, lr=3.2e-6, lr_decay_end=28_000),
)
