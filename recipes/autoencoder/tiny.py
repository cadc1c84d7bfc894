"""The smallest run: seconds, for tests and a first try."""

from latentdiff.autoencoder.autoencoder import AutoencoderConfig
from latentdiff.autoencoder.discriminator import DiscriminatorConfig
from latentdiff.autoencoder.loss import LossConfig
from latentdiff.autoencoder.perceptual import MultiScaleConfig
from latentdiff.data.shapes.dataset import ShapesConfig
from latentdiff.recipe import AutoencoderRecipe
from latentdiff.training.settings import TrainConfig

recipe = AutoencoderRecipe(
    data=ShapesConfig(count=64, val_count=16),
    autoencoder=AutoencoderConfig(
        channels=8, channel_mult=(1, 2, 2), num_res_blocks=1, mid_attention=False, norm_groups=4
    ),
    loss=LossConfig(perceptual=MultiScaleConfig()),
    discriminator=DiscriminatorConfig(channels=8, layers=1, train_from=0.0, start=5, ramp=5),
    train=TrainConfig(
        steps=60,
        batch_size=8,
        lr=2e-3,
        betas=(0.9, 0.99),
        weight_decay=0.0,
        grad_clip=0.0,
        ema_decay=0.9,
        log_every=1,
        val_every=30,
        sample_every=30,
        checkpoint_every=30,
    ),
)
