"""The training config that the release offers for LSUN churches: that of the released model."""

from latentdiff.config import load

recipe = load("lsun_churches256.py")
