"""Boxes of cells to microscope images of blood at 96 x 72 (data/boxes_bccd).

The classes: 0 red cells, 1 white cells, 2 platelets. Some cells are not annotated.
"""

from dataclasses import replace

from latentdiff.conditioning.layout import LayoutConfig
from latentdiff.config import load
from latentdiff.data.folder import FolderConfig
from latentdiff.data.latent_cache import LatentCacheConfig

small = load("small.py")
recipe = replace(
    small,
    autoencoder="bccd-autoencoder",
    data=FolderConfig(path="data/boxes_bccd", size=72, width=96, flip=True),
    cache=LatentCacheConfig(copies=2),  # original and mirrored
    conditions=(
        # corners of boxes on a grid of 25 x 25
        LayoutConfig(
            classes=3, objects=30, dim=128, depth=2, heads=4, head_dim=32, vocab_size=640, whole_image_tokens=False
        ),
    ),
    unet=replace(small.unet, channel_mult=(1, 2, 3), attention_levels=(1, 2)),
    train=replace(small.train, steps=3000, batch_size=8, optimizer="adamw"),
    sampling=replace(small.sampling, guidance_scale=2.0),
)
