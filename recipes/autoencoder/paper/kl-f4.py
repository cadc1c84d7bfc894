"""KL, f = 4, 3 channels (paper, table 8): rFID 0.27, PSNR 27.53 after 176,991 steps.

The released autoencoders were trained on OpenImages (images of 384 pixels, crops of 256), not on ImageNet. The learning
rate is the base learning rate 4.5e-6 times the batch size of one GPU; the number of GPUs is not published.
"""

from latentdiff.autoencoder.autoencoder import AutoencoderConfig
from latentdiff.autoencoder.bottleneck import KLConfig
from latentdiff.autoencoder.discriminator import DiscriminatorConfig
from latentdiff.autoencoder.loss import LossConfig
from latentdiff.autoencoder.perceptual import LPIPSConfig
from latentdiff.data.folder import FolderConfig
from latentdiff.recipe import AutoencoderRecipe
from latentdiff.training.settings import TrainConfig

recipe = AutoencoderRecipe(
    data=FolderConfig(path="data/openimages", size=256, crop="random"),
    autoencoder=AutoencoderConfig(channel_mult=(1, 2, 4), z_channels=3, bottleneck=KLConfig(weight=1e-6)),
    loss=LossConfig(l1=1.0, perceptual=LPIPSConfig(weight=1.0)),
    discriminator=DiscriminatorConfig(norm="batch", weight=0.5, train_from=50001, start=50001, ramp=0),
    train=TrainConfig(
        steps=176_991,
        batch_size=10,
        lr=4.5e-5,
        betas=(0.5, 0.9),
        weight_decay=0.0,
        grad_clip=0.0,
        ema_decay=0.0,  # the released first stages have no EMA
        precision="fp32",
    ),
)
