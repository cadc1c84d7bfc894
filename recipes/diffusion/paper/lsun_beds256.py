"""LSUN bedrooms, unconditional (paper, table 12): FID 2.95 with 200 steps of DDIM, eta 1."""

from dataclasses import replace

from latentdiff.config import load

base = load("celeba256.py")
recipe = replace(
    base,
    data=replace(base.data, path="data/lsun_bedrooms"),
    train=replace(base.train, steps=1_900_000),
    sampling=replace(base.sampling, eta=1.0),
)
