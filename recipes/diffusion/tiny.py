"""The smallest run: an untrained autoencoder, a tiny text model; seconds, for tests and a first try."""

from latentdiff.conditioning.text import TextConfig
from latentdiff.data.latent_cache import LatentCacheConfig
from latentdiff.data.shapes.dataset import ShapesConfig
from latentdiff.diffusion.loss import ObjectiveConfig
from latentdiff.diffusion.sampling_config import SamplingConfig
from latentdiff.diffusion.schedule import ScheduleConfig
from latentdiff.diffusion.unet import UNetConfig
from latentdiff.recipe import DiffusionRecipe
from latentdiff.training.settings import TrainConfig

recipe = DiffusionRecipe(
    autoencoder="recipes/autoencoder/tiny.py",
    data=ShapesConfig(count=64, val_count=16),
    cache=LatentCacheConfig(shard_size=32, batch_size=32),
    conditions=(TextConfig(dim=32, depth=1, heads=2, head_dim=16, max_length=32, vocab_size=128),),
    unet=UNetConfig(
        channels=16, channel_mult=(1, 2), num_res_blocks=1, attention_levels=(1,), num_heads=2, norm_groups=8
    ),
    schedule=ScheduleConfig(kind="flow"),
    objective=ObjectiveConfig(prediction="flow"),
    train=TrainConfig(
        steps=60,
        batch_size=8,
        lr=1e-3,
        ema_decay=0.9,
        log_every=1,
        val_every=30,
        sample_every=30,
        checkpoint_every=30,
    ),
    sampling=SamplingConfig(steps=4, guidance_scale=2.0),
)
