"""The released training config for CelebA-HQ, that of the released model."""

from latentdiff.config import load

recipe = load("celeba256.py")
