"""The training config that the release offers for FFHQ: that of the released model."""

from latentdiff.config import load

recipe = load("ffhq256.py")
