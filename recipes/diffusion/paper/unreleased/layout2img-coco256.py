"""Layout to image on COCO, f = 8, from scratch (paper, table 9): FID 42.06.

The U-Net is that of table 15; with the transformer it has 367 million parameters, not 345 as in the table. Schedule and
loss are those of the released OpenImages model, because those of the COCO model are not published.
"""

from dataclasses import replace

from latentdiff.config import load
from latentdiff.data.coco import CocoConfig

base = load("../layout2img-openimages256.py")
recipe = replace(
    base,
    autoencoder="vq-f8-autoencoder",
    data=CocoConfig(path="data/coco", size=256),
    conditions=(replace(base.conditions[0], classes=80),),
    unet=replace(
        base.unet,
        channels=192,
        channel_mult=(1, 2, 4),
        attention_levels=(0, 1, 2),
        transformer_depth=2,
        dropout=0.1,
    ),
    train=replace(base.train, steps=170_000, batch_size=48),
)
