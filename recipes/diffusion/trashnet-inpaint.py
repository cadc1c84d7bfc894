"""Inpainting of photographs at 72 x 96; data/photos/trashnet holds them."""

from dataclasses import replace

from latentdiff.config import load
from latentdiff.data.cache import Cache
from latentdiff.data.folder import Folder

inpaint = load("inpaint.py")
recipe = replace(
    inpaint,
    autoencoder="trashnet-autoencoder",
    data=Folder(path="data/photos/trashnet", size=96, width=72, flip=True),
    cache=Cache(copies=2),  # as it is, and mirrored
    unet=replace(inpaint.unet, channels=64, head_channels=32),
    train=replace(inpaint.train, steps=8000, batch_size=16),
)
