"""Classifies the kind of the largest shape from noisy latents: classifier guidance for recipes/diffusion/uncond.py."""

from dataclasses import replace

from latentdiff.conditioning.label import LabelConfig
from latentdiff.config import load
from latentdiff.recipe import ClassifierRecipe

uncond = load("../diffusion/uncond.py")
recipe = ClassifierRecipe(
    autoencoder=uncond.autoencoder,
    data=uncond.data,
    label=LabelConfig(classes=4),
    unet=replace(uncond.unet, channels=32, head_channels=16),
    schedule=uncond.schedule,
    train=replace(uncond.train, steps=2000, batch_size=64, optimizer="adamw", lr=7e-4, weight_decay=0.05),
)
