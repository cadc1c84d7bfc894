"""Classes to shapes: one object, whose kind is the class, by cross-attention (paper, sec. 4.4)."""

from dataclasses import replace

from latentdiff.conditioning.label import Label
from latentdiff.config import load

uncond = load("uncond.py")
recipe = replace(
    uncond,
    data=replace(uncond.data, max_objects=1),
    conditions=(Label(classes=4, dim=64),),
    train=replace(uncond.train, steps=4000),
    sampling=replace(uncond.sampling, guidance_scale=2.0),
)
