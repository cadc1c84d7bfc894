"""Inpainting of photographs at 72 x 96: trashnet-superres.py with the condition of inpaint.py."""

from dataclasses import replace

from latentdiff.conditioning.inpainting import MaskedConfig
from latentdiff.config import load

photos, inpaint = load("trashnet-superres.py"), load("inpaint.py")

recipe = replace(photos, derived_fields=inpaint.derived_fields, conditions=(MaskedConfig(),), name="")
