"""The released training config for ImageNet at f = 8, that of the released model."""

from latentdiff.config import load

recipe = load("cin256.py")
