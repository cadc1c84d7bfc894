"""ImageNet by class, f = 8 (paper, table 13, figure 6): LDM-8 of the compression study, the base of its six recipes."""

from dataclasses import replace

from latentdiff.config import load

base = load("../cin256.py")
recipe = replace(
    base,
    train=replace(base.train, steps=2_000_000),  # each on one A100
    sampling=replace(base.sampling, steps=100, eta=0.0),
)
