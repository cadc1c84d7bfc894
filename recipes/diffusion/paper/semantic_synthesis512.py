"""Semantic maps to landscapes at 512 pixels: semantic_synthesis256 fine-tuned (paper, sec. 4.3.2)."""

from dataclasses import replace

from latentdiff.config import load

base = load("semantic_synthesis256.py")
recipe = replace(
    base,
    data=replace(base.data, size=512),
    init="semantic_synthesis256",
    train=replace(base.train, steps=50_000, batch_size=8, lr=8e-6),  # the number of steps is not published
)
