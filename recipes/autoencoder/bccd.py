"""Blood cells under a microscope at 96 x 128: 205 of them to train on, as the emoji are; data/boxes_bccd holds them."""

from dataclasses import replace

from latentdiff.config import load
from latentdiff.data.folder import Folder

recipe = replace(load("emoji.py"), data=Folder(path="data/boxes_bccd", size=96, width=128, flip=True))
