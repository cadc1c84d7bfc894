"""A small f = 8 autoencoder, as the text-to-image pipeline of diffusers requires; used untrained."""

from dataclasses import replace

from latentdiff.autoencoder.autoencoder import AutoencoderConfig
from latentdiff.config import load

recipe = replace(
    load("tiny.py"),
    autoencoder=AutoencoderConfig(
        channels=8, channel_mult=(1, 2, 2, 2), num_res_blocks=1, mid_attention=False, norm_groups=4
    ),
)
