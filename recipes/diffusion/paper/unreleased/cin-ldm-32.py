"""ImageNet by class, f = 32 (paper, table 13): LDM-32 of the compression study."""

from dataclasses import replace

from latentdiff.config import load

recipe = replace(load("cin-ldm-16.py"), autoencoder="vq-f32-autoencoder")
