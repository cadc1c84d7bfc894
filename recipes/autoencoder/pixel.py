"""No compression: the latents are the pixels (LDM-1 in the paper). There is nothing to train."""

from dataclasses import replace

from latentdiff.autoencoder.autoencoder import AutoencoderConfig
from latentdiff.autoencoder.bottleneck import IdentityConfig
from latentdiff.config import load

recipe = replace(
    load("demo.py"), autoencoder=AutoencoderConfig(channel_mult=(), z_channels=3, bottleneck=IdentityConfig())
)
