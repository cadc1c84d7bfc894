"""Inpainting of shapes (paper, sec. 4.5): masks of strokes and boxes; known pixels stay unchanged."""

from dataclasses import replace

from latentdiff.conditioning.inpainting import MaskedConfig
from latentdiff.config import load
from latentdiff.data.masks import MasksConfig

uncond = load("uncond.py")
recipe = replace(
    uncond,
    derived_fields=(MasksConfig(),),
    # the latent has only 8 x 8 positions: the network also needs the mask and the image at full resolution
    conditions=(MaskedConfig(dropout=0.1, every_pixel=True),),
    train=replace(uncond.train, steps=2400, batch_size=64, checkpoint_every=800),
    sampling=replace(uncond.sampling, guidance_scale=2.0),
)
