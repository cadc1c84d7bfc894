"""CelebA-HQ, unconditional (paper, table 12): FID 5.11 with 500 steps of DDIM. The base of all recipes here."""

from latentdiff.data.folder import FolderConfig
from latentdiff.diffusion.sampling_config import SamplingConfig
from latentdiff.diffusion.schedule import ScheduleConfig
from latentdiff.diffusion.unet import UNetConfig
from latentdiff.recipe import DiffusionRecipe
from latentdiff.training.settings import TrainConfig

recipe = DiffusionRecipe(
    autoencoder="vq-f4-autoencoder",
    data=FolderConfig(path="data/celebahq", size=256),
    unet=UNetConfig(channels=224, channel_mult=(1, 2, 3, 4), attention_levels=(1, 2, 3), head_channels=32),
    schedule=ScheduleConfig(beta_start=0.0015, beta_end=0.0195),  # the paper says "linear": linear in sqrt(beta)
    train=TrainConfig(steps=410_000, batch_size=48, lr=9.6e-5, grad_clip=0.0, precision="fp32"),  # base lr 2e-6 x 48
    sampling=SamplingConfig(sampler="ddim", steps=200, guidance_scale=1.0),
)
