"""Shapes without a condition, at 32 x 32, begun with the demo's U-Net, which draws what a caption says."""

from dataclasses import replace

from latentdiff.config import load
from latentdiff.diffusion.sampling_config import SamplingConfig

demo = load("demo.py")

recipe = replace(
    demo,
    init="demo",
    init_partial=True,  # what reads captions is left behind
    conditions=(),
    schedule=replace(demo.schedule, snr_shift=2.0),  # places are decided where the noise is high
    objective=replace(demo.objective, stratified=True),
    # the checkpoint of step 500 is kept: guided away from it, more of the pictures are scenes (docs/tasks.md)
    train=replace(demo.train, steps=3500, checkpoint_every=500, keep_checkpoints=7),
    sampling=SamplingConfig(sampler="dpmpp_2m_sde", steps=50, guidance_scale=1.0),  # fresh noise mends early errors
    name="",
)
