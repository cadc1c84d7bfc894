"""The released training config for FFHQ, that of the released model."""

from latentdiff.config import load

recipe = load("ffhq256.py")
