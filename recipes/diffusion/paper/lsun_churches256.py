"""LSUN churches, unconditional, in the latent space of a KL autoencoder (paper, table 12): FID 4.02."""

from dataclasses import replace

from latentdiff.config import load
from latentdiff.diffusion.loss import ObjectiveConfig
from latentdiff.diffusion.unet import UNetConfig

base = load("celeba256.py")
recipe = replace(
    base,
    # the release normalizes latents by their standard deviation over one batch; stage one here, over all its data
    autoencoder="kl-f8-autoencoder",
    data=replace(base.data, path="data/lsun_churches"),
    unet=UNetConfig(
        channels=192,
        channel_mult=(1, 2, 2, 4, 4),
        attention_levels=(0, 1, 2, 3),
        num_heads=8,
        scale_shift_norm=True,
        resblock_updown=True,
    ),
    schedule=replace(base.schedule, beta_end=0.0155),
    objective=ObjectiveConfig(loss="l1"),  # as in the released config; the paper says L2
    train=replace(base.train, steps=500_000, batch_size=96, lr=5e-5, warmup_steps=10_000, lr_start=1e-6),  # not scaled
)
