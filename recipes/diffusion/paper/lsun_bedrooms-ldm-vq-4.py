"""The training config that the release offers for LSUN bedrooms: that of the released model."""

from latentdiff.config import load

recipe = load("lsun_beds256.py")
