"""Semantic maps to shapes (paper, sec. 4.3.2): the map's classes say what is where, the model chooses the colours."""

from latentdiff.conditioning.spatial import Semantic
from latentdiff.data.shapes import Shapes
from latentdiff.diffusion.schedule import ScheduleConfig
from latentdiff.diffusion.unet import UNetConfig
from latentdiff.latent_diffusion import Objective, Sampling
from latentdiff.recipe import DiffusionRecipe
from latentdiff.training.settings import Train

recipe = DiffusionRecipe(
    autoencoder="demo-autoencoder",
    data=Shapes(kinds=("circle", "square", "triangle", "star"), max_objects=2),
    conditions=(Semantic(classes=5, channels=8),),
    unet=UNetConfig(
        channels=48,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_levels=(),  # as in the paper: with little attention, larger maps than in training work as well
        head_channels=24,
        norm_groups=16,
    ),
    schedule=ScheduleConfig(kind="flow", shift=2.0),
    objective=Objective(prediction="flow", timesteps="logit_normal"),
    train=Train(
        steps=4000,
        batch_size=32,
        lr=1e-3,
        schedule="cosine",
        warmup=100,
        betas=(0.9, 0.99),
        ema=0.998,
        log_every=100,
        val_every=1000,
        sample_every=2000,
        checkpoint_every=1000,
    ),
    sampling=Sampling(steps=20, guidance_scale=1.0),
)
