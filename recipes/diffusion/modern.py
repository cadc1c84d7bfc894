"""The demo's task with what was learned after 2022 (docs/options.md says why): the same data, width and autoencoder."""

from dataclasses import replace

from latentdiff.config import load
from latentdiff.latent_diffusion import Objective

demo = load("demo.py")

recipe = replace(
    demo,
    unet=replace(demo.unet, blocks="modern", positions=False),  # they turn queries and keys by their places instead
    objective=Objective(prediction="flow", timesteps="logit_normal", stratified=True),
    train=replace(demo.train, betas=(0.9, 0.95)),
    name="",
)
