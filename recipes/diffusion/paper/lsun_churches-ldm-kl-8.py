"""The released training config for LSUN churches, that of the released model."""

from latentdiff.config import load

recipe = load("lsun_churches256.py")
