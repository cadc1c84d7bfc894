"""Blood cells under a microscope at 96 x 72, 205 training images (data/boxes_bccd); settings of trashnet.py."""

from dataclasses import replace

from latentdiff.config import load
from latentdiff.data.folder import FolderConfig

recipe = replace(load("trashnet.py"), data=FolderConfig(path="data/boxes_bccd", size=72, width=96, flip=True))
