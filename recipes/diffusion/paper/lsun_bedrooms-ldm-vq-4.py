"""The released training config for LSUN bedrooms, that of the released model."""

from latentdiff.config import load

recipe = load("lsun_beds256.py")
