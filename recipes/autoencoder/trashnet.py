"""Photographs of rubbish at 72 x 96, 2,146 training images (data/photos/trashnet).

Half as wide as the emoji autoencoder, with many small steps: suited to a small machine.
"""

from dataclasses import replace

from latentdiff.config import load
from latentdiff.data.folder import FolderConfig

emoji = load("emoji.py")
recipe = replace(
    emoji,
    data=FolderConfig(path="data/photos/trashnet", size=96, width=72, flip=True),
    autoencoder=replace(emoji.autoencoder, channels=16),
    train=replace(emoji.train, steps=3000, batch_size=4, ema_decay=0.998),
)
