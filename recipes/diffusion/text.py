"""Captions to shapes (paper, sec. 4.3.1): the same recipe as demo.py, the default of train_diffusion.py."""

from latentdiff.config import load

recipe = load("demo.py")
