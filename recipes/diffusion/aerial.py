"""Maps of land, water, roads and houses to aerial photographs at 64 x 64 (data/seg_aerial).

The classes: 0 unlabeled, 1 building, 2 land, 3 road, 4 vegetation, 5 water.
"""

from dataclasses import replace

from latentdiff.conditioning.semantic import SemanticConfig
from latentdiff.config import load
from latentdiff.data.folder import FolderConfig
from latentdiff.data.latent_cache import LatentCacheConfig

small = load("small.py")
recipe = replace(
    small,
    autoencoder="aerial-autoencoder",
    data=FolderConfig(path="data/seg_aerial", size=64, flip=True),
    cache=LatentCacheConfig(copies=2),  # original and mirrored
    conditions=(SemanticConfig(classes=6, channels=8, dropout=0.1),),
    unet=replace(small.unet, channel_mult=(1, 2, 3), attention_levels=(), pos_embed=False),
    train=replace(small.train, steps=4000, batch_size=8, optimizer="adamw"),
    sampling=replace(small.sampling, guidance_scale=2.0),
)
