"""ImageNet by class, f = 16 (paper, table 13): LDM-16 of the compression study."""

from dataclasses import replace

from latentdiff.config import load

base = load("cin-ldm-8.py")
recipe = replace(base, autoencoder="vq-f16-autoencoder", train=replace(base.train, batch_size=112, lr=4.5e-5))
