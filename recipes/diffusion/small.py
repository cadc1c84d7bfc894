"""The base of the other tasks' small recipes: shapes at 32 x 32, unconditional."""

from dataclasses import replace

from latentdiff.config import load
from latentdiff.diffusion.loss import ObjectiveConfig
from latentdiff.diffusion.sampling_config import SamplingConfig

demo = load("demo.py")

recipe = replace(
    demo,
    data=replace(demo.data, wording="varied"),
    conditions=(),
    unet=replace(demo.unet, channels=48, head_channels=24),
    # the layout is decided at the highest noise levels, which logit-normal timesteps hardly train
    schedule=replace(demo.schedule, snr_shift=3.0),
    objective=ObjectiveConfig(prediction="flow", timestep_sampling="uniform", stratified=True),
    sampling=SamplingConfig(steps=25, guidance_scale=1.0),
    name="",
)
