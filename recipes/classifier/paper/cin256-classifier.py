"""ImageNet classifier of noisy latents, which guides cin256.py at scale 10 (paper, table 10: LDM-8-G, FID 7.76).

The original ends with attention pooling, 3.2 of its 111.6 million parameters; here it is average pooling.
"""

from dataclasses import replace

from latentdiff.config import load
from latentdiff.recipe import ClassifierRecipe

cin = load("../../diffusion/paper/cin256.py")
recipe = ClassifierRecipe(
    autoencoder=cin.autoencoder,
    data=cin.data,
    label=cin.conditions[0],
    unet=cin.unet,
    schedule=cin.schedule,
    # not published; as in the classifier training of guided-diffusion
    train=replace(cin.train, steps=300_000, batch_size=256, lr=3e-4, lr_schedule="linear"),
)
