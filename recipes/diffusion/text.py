"""Captions to shapes (paper, sec. 4.3.1): the default of train_diffusion.py under the name of its task."""

from latentdiff.config import load

recipe = load("demo.py")
