"""CelebA-HQ, unconditional, f = 32 (paper, table 14): LDM-32 of the compression study."""

from dataclasses import replace

from latentdiff.config import load

recipe = replace(load("celeba-ldm-16.py"), autoencoder="vq-f32-autoencoder")
