"""Inpainting of shapes (paper, sec. 4.5): strokes and boxes are filled; what is known stays as it is."""

from dataclasses import replace

from latentdiff.conditioning.inpainting import MaskedConfig
from latentdiff.config import load
from latentdiff.data.masks import MasksConfig

uncond = load("uncond.py")
recipe = replace(
    uncond,
    derived_fields=(MasksConfig(),),
    # eight cells a side: where within a cell the hole begins, and the specks beside it, must be told
    conditions=(MaskedConfig(dropout=0.1, every_pixel=True),),
    train=replace(uncond.train, steps=2400, batch_size=64, checkpoint_every=800),
    sampling=replace(uncond.sampling, guidance_scale=2.0),
)
