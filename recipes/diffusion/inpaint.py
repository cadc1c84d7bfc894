"""Inpainting of shapes (paper, sec. 4.5): strokes and boxes are filled; what is known stays as it is."""

from dataclasses import replace

from latentdiff.conditioning.spatial import Masked
from latentdiff.config import load
from latentdiff.data.masks import Masks

uncond = load("uncond.py")
recipe = replace(
    uncond,
    fields=(Masks(),),
    # eight cells a side: where within a cell the hole begins must be told, black objects look like it
    conditions=(Masked(dropout=0.1, every_pixel=True),),
    train=replace(uncond.train, steps=3500),
    sampling=replace(uncond.sampling, guidance_scale=2.0),
)
