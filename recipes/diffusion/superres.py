"""Super-resolution of shapes, 8 x 8 to 32 x 32 (paper, sec. 4.4): the low-resolution image is concatenated input."""

from dataclasses import replace

from latentdiff.conditioning.low_res import LowResConfig
from latentdiff.config import load
from latentdiff.data.degrade import DegradeConfig

small = load("small.py")
recipe = replace(
    small,
    derived_fields=(DegradeConfig(scale=4),),
    conditions=(LowResConfig(),),
    # the condition determines the layout: little attention is needed, and medium noise levels matter most
    unet=replace(small.unet, attention_levels=(1,), pos_embed=False),
    schedule=replace(small.schedule, snr_shift=2.0),
    objective=replace(small.objective, timestep_sampling="logit_normal"),
    train=replace(small.train, steps=1500),
)
