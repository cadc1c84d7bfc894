"""VQ, f = 32, 16384 codes of 32 channels, as in tables 13 and 14; table 8 has 16 channels (rFID 31.83).

The network is that of the released kl-f32; the network and steps of vq-f32 are not published.
"""

from dataclasses import replace

from latentdiff.config import load

base = load("../vq-f16.py")
recipe = replace(
    base,
    autoencoder=replace(base.autoencoder, channel_mult=(1, 1, 2, 2, 4, 4), attention_levels=(4, 5), z_channels=32),
)
