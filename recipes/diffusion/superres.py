"""Super-resolution of shapes, 8 x 8 to 32 x 32 (paper, sec. 4.4): the small picture is joined to the latent."""

from dataclasses import replace

from latentdiff.conditioning.spatial import LowRes
from latentdiff.config import load
from latentdiff.data.degrade import Degrade

uncond = load("uncond.py")
recipe = replace(
    uncond,
    fields=(Degrade(scale=4),),
    conditions=(LowRes(),),
    train=replace(uncond.train, steps=1500),
)
