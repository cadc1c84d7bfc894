"""The demo's task with the U-Net's transformers as they are built now (docs/options.md says what it is worth)."""

from dataclasses import replace

from latentdiff.config import load

demo = load("demo.py")

recipe = replace(demo, unet=replace(demo.unet, blocks="modern"), name="")
