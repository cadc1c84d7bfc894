"""Photographs of rubbish at 72 x 96: 2,146 of them to train on, as the emoji are; data/photos/trashnet holds them."""

from dataclasses import replace

from latentdiff.config import load
from latentdiff.data.folder import Folder

recipe = replace(load("emoji.py"), data=Folder(path="data/photos/trashnet", size=96, width=72, flip=True))
