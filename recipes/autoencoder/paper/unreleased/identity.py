"""No compression, f = 1: the latents are the pixels (paper, sec. 4.1: LDM-1). There is nothing to train."""

from dataclasses import replace

from latentdiff.autoencoder.bottleneck import IdentityConfig
from latentdiff.config import load

base = load("../kl-f4.py")
recipe = replace(base, autoencoder=replace(base.autoencoder, channel_mult=(), bottleneck=IdentityConfig()))
