"""Shapes in pixel space (LDM-1 in the paper, with patches of 2 x 2 pixels): the same U-Net without an autoencoder."""

from dataclasses import replace

from latentdiff.config import load
from latentdiff.diffusion.loss import ObjectiveConfig
from latentdiff.recipe import FrozenAutoencoderConfig

small = load("small.py")
recipe = replace(
    small,
    autoencoder=FrozenAutoencoderConfig("recipes/autoencoder/pixel.py", latent_stats="data"),
    data=replace(small.data, max_objects=1),
    # at one position per pixel a step costs too much
    unet=replace(small.unet, patch_size=2, channels=64, attention_levels=(1,), head_channels=32),
    schedule=replace(small.schedule, snr_shift=4.0),  # more pixels reveal more at the same noise level
    # t around sigma = 1.2 alpha, where outlines are decided. At higher noise levels the loss is ten times larger,
    # mostly irreducible error, and would dominate the gradients without weighting
    objective=ObjectiveConfig(
        prediction="flow",
        timestep_sampling="logit_normal",
        logit_mean=-1.2,
        logit_std=1.3,
        stratified=True,
        weighting="learned",
    ),
    train=replace(small.train, steps=1500, batch_size=64, lr=3e-3, lr_decay_start=0.6, checkpoint_every=500),
    sampling=replace(small.sampling, sampler="dpmpp_2m_sde", steps=50),
)
