"""Text to shapes, the second stage of the default: minutes on two CPU cores."""

from latentdiff.conditioning.text import TextConfig
from latentdiff.data.shapes.dataset import ShapesConfig
from latentdiff.diffusion.loss import ObjectiveConfig
from latentdiff.diffusion.sampling_config import SamplingConfig
from latentdiff.diffusion.schedule import ScheduleConfig
from latentdiff.diffusion.unet import UNetConfig
from latentdiff.recipe import DiffusionRecipe
from latentdiff.training.settings import TrainConfig

recipe = DiffusionRecipe(
    autoencoder="demo-autoencoder",
    data=ShapesConfig(kinds=("circle", "square", "triangle", "star"), max_objects=2, wording="full"),
    conditions=(TextConfig(dim=128, depth=3, heads=4, head_dim=32, max_length=24, vocab_size=256),),
    unet=UNetConfig(
        channels=64,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_levels=(0, 1),
        head_channels=32,
        norm_groups=16,
        pos_embed=True,  # without it, "above" and "below" are not distinguished for thousands of steps
    ),
    schedule=ScheduleConfig(kind="flow"),
    objective=ObjectiveConfig(prediction="flow", timestep_sampling="logit_normal"),
    train=TrainConfig(
        steps=1100,
        batch_size=32,
        optimizer="muon",  # prompt accuracy 0.93 after 1,500 steps; AdamW: 0.53
        lr=1e-3,
        lr_schedule="linear",
        warmup_steps=100,
        lr_decay_start=5 / 6,  # decay from the start costs half of the steps
        betas=(0.9, 0.99),
        ema_decay=0.99,  # 0.998 lags behind while the learning rate falls: prompt accuracy 0.05 lower
        log_every=100,
        val_every=1000,
        sample_every=1000,
        checkpoint_every=1000,
    ),
    sampling=SamplingConfig(sampler="ddpm", steps=10, guidance_scale=2.0),  # new noise corrects errors
)
