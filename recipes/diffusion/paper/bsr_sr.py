"""Super-resolution by 4 for images with unknown degradation (paper, app. D.6.1: LDM-BSR)."""

from dataclasses import replace

from latentdiff.conditioning.low_res import LowResConfig
from latentdiff.config import load
from latentdiff.data.degrade import DegradeConfig

base = load("celeba256.py")
recipe = replace(
    base,
    data=replace(base.data, path="data/openimages", crop="random"),
    derived_fields=(DegradeConfig(scale=4, kind="bsr"),),
    conditions=(LowResConfig(),),
    # attention_resolutions [16, 8] of the release are downsampling factors; only 8 occurs in this U-Net
    unet=replace(base.unet, channels=160, channel_mult=(1, 2, 2, 4), attention_levels=(3,)),
    schedule=replace(base.schedule, beta_end=0.0155),
    train=replace(base.train, steps=860_000, batch_size=64, lr=6.4e-5),
)
