"""The released training config for f = 32: kl-f32 on ImageNet, two micro-batches of 12 images."""

from dataclasses import replace

from latentdiff.config import load

base = load("kl-f32.py")
recipe = replace(
    base,
    data=replace(base.data, path="data/imagenet"),
    train=replace(base.train, batch_size=24, grad_accum_steps=2, lr=1.08e-4),
)
