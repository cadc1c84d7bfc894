"""The demo in four sampling steps: consistency distillation of the finished run `demo`."""

from dataclasses import replace

from latentdiff.config import load
from latentdiff.diffusion.distillation import DistillConfig
from latentdiff.diffusion.loss import ObjectiveConfig
from latentdiff.diffusion.sampling_config import SamplingConfig

demo = load("demo.py")

recipe = replace(
    demo,
    autoencoder="",  # that of init
    init="demo",
    distill=DistillConfig(guidance_scale=2.0),
    objective=ObjectiveConfig(prediction="flow", timestep_sampling="uniform", loss="huber"),
    train=replace(demo.train, steps=600, optimizer="adamw", lr=2e-4, warmup_steps=50, ema_decay=0.98),
    sampling=SamplingConfig(steps=4, sampler="lcm", guidance_scale=1.0),
    name="",
)
