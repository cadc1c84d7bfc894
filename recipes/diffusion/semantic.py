"""Semantic maps to shapes (paper, sec. 4.3.2): the map says what is where, the model chooses the colours."""

from dataclasses import replace

from latentdiff.conditioning.spatial import Semantic
from latentdiff.config import load

uncond = load("uncond.py")
recipe = replace(
    uncond,
    conditions=(Semantic(classes=5, channels=8),),
    # as in the paper there is attention in the middle alone, so that larger maps than in training work as well
    unet=replace(uncond.unet, attention_levels=()),
    train=replace(uncond.train, steps=8000),
)
