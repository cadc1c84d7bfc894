"""Super-resolution of photographs, 18 x 24 to 72 x 96 (data/photos/trashnet)."""

from dataclasses import replace

from latentdiff.config import load
from latentdiff.data.folder import FolderConfig
from latentdiff.data.latent_cache import LatentCacheConfig

superres = load("superres.py")
recipe = replace(
    superres,
    autoencoder="trashnet-autoencoder",
    data=FolderConfig(path="data/photos/trashnet", size=96, width=72, flip=True),
    cache=LatentCacheConfig(copies=2),  # original and mirrored
    train=replace(
        superres.train, steps=3000, batch_size=8, optimizer="adamw", lr_schedule="cosine", lr_decay_start=0.0
    ),
)
