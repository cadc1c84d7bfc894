"""Shapes without a condition, at 32 x 32: what the small runs of the other tasks differ from."""

from latentdiff.data.shapes import Shapes
from latentdiff.diffusion.schedule import ScheduleConfig
from latentdiff.diffusion.unet import UNetConfig
from latentdiff.latent_diffusion import Objective, Sampling
from latentdiff.recipe import DiffusionRecipe
from latentdiff.training.settings import Train

recipe = DiffusionRecipe(
    autoencoder="demo-autoencoder",
    data=Shapes(kinds=("circle", "square", "triangle", "star"), max_objects=2),
    unet=UNetConfig(
        channels=48,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_levels=(1,),
        head_channels=24,
        norm_groups=16,
    ),
    # what is where is decided where hardly a signal is left; logit-normal timesteps leave that nearly untrained
    schedule=ScheduleConfig(kind="flow", shift=3.0),
    objective=Objective(prediction="flow", timesteps="uniform"),
    train=Train(
        steps=3000,
        batch_size=32,
        lr=1e-3,
        schedule="cosine",
        warmup=100,
        betas=(0.9, 0.99),
        ema=0.998,
        log_every=100,
        val_every=1000,
        sample_every=1000,
        checkpoint_every=1000,
    ),
    sampling=Sampling(steps=25, guidance_scale=1.0),
)
