"""FFHQ, unconditional (paper, table 12): FID 4.98 with 200 steps of DDIM, eta 1."""

from dataclasses import replace

from latentdiff.config import load

base = load("celeba256.py")
recipe = replace(
    base,
    data=replace(base.data, path="data/ffhq"),
    train=replace(base.train, steps=635_000, batch_size=42, lr=8.4e-5),
    sampling=replace(base.sampling, eta=1.0),
)
