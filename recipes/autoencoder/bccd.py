"""Blood cells under a microscope at 96 x 72: 205 of them to train on, as the photographs are; data/boxes_bccd."""

from dataclasses import replace

from latentdiff.config import load
from latentdiff.data.folder import FolderConfig

recipe = replace(load("trashnet.py"), data=FolderConfig(path="data/boxes_bccd", size=72, width=96, flip=True))
