"""Inpainting of photographs at 72 x 96: trained as their super-resolution is, with other conditions."""

from dataclasses import replace

from latentdiff.conditioning.inpainting import MaskedConfig
from latentdiff.config import load

photos, inpaint = load("trashnet-superres.py"), load("inpaint.py")

recipe = replace(photos, derived_fields=inpaint.fields, conditions=(MaskedConfig(),), name="")
