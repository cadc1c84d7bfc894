"""Semantic maps to shapes (paper, sec. 4.3.2): the map says what is where, the model chooses the colours."""

from dataclasses import replace

from latentdiff.conditioning.semantic import SemanticConfig
from latentdiff.config import load

small = load("small.py")
recipe = replace(
    small,
    conditions=(SemanticConfig(classes=5, channels=8),),
    # as in the paper there is attention in the middle alone, so that larger maps than in training work as well
    unet=replace(small.unet, attention_levels=(), pos_embed=False),
    # the condition says what is where, so the middle of the noise matters most
    schedule=replace(small.schedule, snr_shift=2.0),
    objective=replace(small.objective, timestep_sampling="logit_normal", stratified=False),
    train=replace(small.train, steps=3000),
)
