"""Aerial photographs at 64 x 64, 685 training images (data/seg_aerial); settings of trashnet.py."""

from dataclasses import replace

from latentdiff.config import load
from latentdiff.data.folder import FolderConfig

recipe = replace(load("trashnet.py"), data=FolderConfig(path="data/seg_aerial", size=64, flip=True))
