"""Super-resolution of shapes, 8 x 8 to 32 x 32 (paper, sec. 4.4): the small picture is joined to the latent."""

from dataclasses import replace

from latentdiff.conditioning.spatial import LowRes
from latentdiff.config import load
from latentdiff.data.degrade import Degrade

small = load("small.py")
recipe = replace(
    small,
    fields=(Degrade(scale=4),),
    conditions=(LowRes(),),
    # the condition says what is where: little attention is needed, and the middle of the noise matters most
    unet=replace(small.unet, attention_levels=(1,), positions=False),
    schedule=replace(small.schedule, shift=2.0),
    objective=replace(small.objective, timesteps="logit_normal"),
    train=replace(small.train, steps=1500),
)
