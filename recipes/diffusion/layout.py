"""Layouts to shapes (paper, sec. 4.3.1): boxes and their classes, through a small transformer and cross-attention."""

from dataclasses import replace

from latentdiff.conditioning.layout import LayoutConfig
from latentdiff.config import load

small = load("small.py")
recipe = replace(
    small,
    conditions=(
        # corners of boxes on a grid of 25 x 25
        LayoutConfig(
            classes=4, objects=2, dim=128, depth=2, heads=4, head_dim=32, vocab_size=640, whole_image_tokens=False
        ),
    ),
    train=replace(small.train, steps=1300),
    sampling=replace(small.sampling, guidance_scale=2.0),
)
