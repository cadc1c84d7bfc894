"""Unconditional shapes at 32 x 32, fine-tuned from the U-Net of the text-conditional demo."""

from dataclasses import replace

from latentdiff.config import load
from latentdiff.diffusion.sampling_config import SamplingConfig

demo = load("demo.py")

recipe = replace(
    demo,
    init="demo",
    init_partial=True,  # without the text encoder and cross-attention
    conditions=(),
    schedule=replace(demo.schedule, snr_shift=2.0),  # the layout is decided at high noise levels
    objective=replace(demo.objective, stratified=True),
    # the checkpoint of step 500 is kept as the weak model of autoguidance (docs/tasks.md)
    train=replace(demo.train, steps=3500, checkpoint_every=500, keep_checkpoints=7),
    sampling=SamplingConfig(sampler="dpmpp_2m_sde", steps=50, guidance_scale=1.0),  # new noise corrects early errors
    name="",
)
