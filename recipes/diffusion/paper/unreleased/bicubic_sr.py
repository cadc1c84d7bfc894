"""Super-resolution by 4 on ImageNet, bicubic as in SR3 (paper, table 5: LDM-SR): FID 2.8, PSNR 24.4."""

from dataclasses import replace

from latentdiff.config import load
from latentdiff.data.degrade import DegradeConfig

base = load("../bsr_sr.py")
recipe = replace(
    base,
    data=replace(base.data, path="data/imagenet"),  # the paper leaves out images smaller than 256 pixels
    derived_fields=(DegradeConfig(scale=4, kind="bicubic"),),
    sampling=replace(base.sampling, steps=100),
)
