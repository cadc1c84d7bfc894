"""Class labels to shapes by cross-attention: one object, whose kind is the class (paper, sec. 4.4)."""

from dataclasses import replace

from latentdiff.conditioning.label import LabelConfig
from latentdiff.config import load

small = load("small.py")
recipe = replace(
    small,
    data=replace(small.data, max_objects=1),
    conditions=(LabelConfig(classes=4, dim=64),),
    train=replace(small.train, steps=1500),
    sampling=replace(small.sampling, guidance_scale=2.0),
)
