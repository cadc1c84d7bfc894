"""Aerial photographs at 64 x 64: 685 of them to train on, as the photographs are; data/seg_aerial holds them."""

from dataclasses import replace

from latentdiff.config import load
from latentdiff.data.folder import FolderConfig

recipe = replace(load("trashnet.py"), data=FolderConfig(path="data/seg_aerial", size=64, flip=True))
