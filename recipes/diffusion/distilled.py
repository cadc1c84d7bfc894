"""The demo in four steps: a student that learns from the finished run `demo` (consistency distillation)."""

from dataclasses import replace

from latentdiff.config import load
from latentdiff.diffusion.distillation import Distill
from latentdiff.model import Objective, Sampling

demo = load("demo.py")

recipe = replace(
    demo,
    autoencoder="",  # comes with init
    init="demo",
    distill=Distill(guidance_scale=2.0),
    objective=Objective(prediction="flow", timesteps="uniform", loss="huber"),
    train=replace(demo.train, steps=600, optimizer="adamw", lr=2e-4, warmup=50, ema=0.98),
    sampling=Sampling(steps=4, sampler="lcm", guidance_scale=1.0),
    name="",
)
