"""What super-resolution starts from: a picture made smaller, and worse.

bicubic: antialiased, as SR3 (Saharia et al. 2021) makes its pairs. bsr: blurs, resizes, noises and JPEG in random order
(Zhang et al. 2021), softened, so that a model learns to mend pictures that nobody prepared (paper, app. D.6.1).
"""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from latentdiff import rng
from latentdiff.config import UserError

RESAMPLE = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.BOX)


@dataclass(frozen=True)
class DegradeConfig:
    scale: int = 4  # how many times smaller the picture becomes, in each direction
    kind: str = "bicubic"  # bicubic: antialiased, nothing else; bsr: random blurs, resizes, noises and JPEG as well

    def __post_init__(self) -> None:
        if self.scale < 1:
            raise UserError(f"scale is {self.scale}; it must be 1 or more")
        if self.kind not in ("bicubic", "bsr"):
            raise UserError(f"the kind of a degradation is {self.kind!r}; it must be bicubic or bsr")


def degrade(config: DegradeConfig, image: np.ndarray, key: int) -> np.ndarray:
    """uint8 [H, W, 3] -> [H / scale, W / scale, 3]; what is random is a function of `key` alone."""
    height, width = (side // config.scale for side in image.shape[:2])
    picture = Image.fromarray(image)
    if config.kind == "bsr":
        generator = np.random.default_rng(rng.key(key, "degrade"))
        # a resize somewhere among the others, so that some of them act on large and some on small pixels
        steps: list[Callable] = [_blur, _blur, _noise, _resize, _jpeg]
        for i in generator.permutation(len(steps)):
            picture = steps[i](picture, generator)
        picture = picture.resize((width, height), RESAMPLE[generator.integers(3)])
        return np.asarray(_jpeg(picture, generator))  # last, as in files that people have
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))


def _blur(picture: Image.Image, generator: np.random.Generator) -> Image.Image:
    """A Gaussian, as wide as a pixel of the small picture at most; wider in one direction half of the time."""
    radii = rng.uniform(0.1, 2.0, 2) if generator.random() < 0.5 else (rng.uniform(0.1, 2.0),) * 2
    return picture.filter(ImageFilter.GaussianBlur(tuple(float(r) for r in radii)))


def _noise(picture: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Gaussian, in colour or in gray, or as of photons counted."""
    x = np.asarray(picture, np.float32)
    kind, strength = generator.integers(3), rng.uniform(1, 12)
    spread = strength * np.sqrt(x / 255 + 0.01) if kind == 2 else strength  # more light, more noise
    x = x + spread * generator.standard_normal((*x.shape[:2], 1 if kind == 1 else 3), dtype=np.float32)
    return Image.fromarray((x + 0.5).clip(0, 255).astype(np.uint8))


def _resize(picture: Image.Image, generator: np.random.Generator) -> Image.Image:
    factor = rng.uniform(0.5, 1.2)
    size = tuple(max(1, round(side * factor)) for side in picture.size)
    return picture.resize(size, RESAMPLE[generator.integers(3)])


def _jpeg(picture: Image.Image, generator: np.random.Generator) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=int(generator.integers(60, 96)))
    return Image.open(file).convert("RGB")
