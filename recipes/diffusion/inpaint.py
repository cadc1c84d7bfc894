"""Inpainting of shapes (paper, sec. 4.5): strokes and boxes are filled; what is known stays as it is."""

from dataclasses import replace

from latentdiff.conditioning.spatial import Masked
from latentdiff.config import load
from latentdiff.data.masks import Masks

uncond = load("uncond.py")
recipe = replace(
    uncond,
    fields=(Masks(),),
    conditions=(Masked(),),
    # the condition says what is where, so the middle of the noise matters most
    schedule=replace(uncond.schedule, shift=2.0),
    objective=replace(uncond.objective, timesteps="logit_normal"),
    train=replace(uncond.train, steps=3000),
)
