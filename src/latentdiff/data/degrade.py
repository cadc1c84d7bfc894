"""Low-resolution copies of images, the input of super-resolution.

bicubic: antialiased resizing, as in SR3 (Saharia et al. 2021). bsr: blur, resizing, noise and JPEG in random order
(Zhang et al. 2021), less strong than there, so that a model works on arbitrary images (paper, app. D.6.1).
"""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageFilter

from latentdiff import rng
from latentdiff.config import UserError

RESAMPLE = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.BOX)


@dataclass(frozen=True)
class DegradeConfig:
    scale: int = 4  # height and width of the image over those of the low-resolution copy
    kind: str = "bicubic"  # bicubic: antialiased resizing only; bsr: also random blur, noise and JPEG

    def __post_init__(self) -> None:
        if self.scale < 1:
            raise UserError(f"scale is {self.scale}; it must be 1 or more")
        if self.kind not in ("bicubic", "bsr"):
            raise UserError(f"kind of Degrade is {self.kind!r}; it must be bicubic or bsr")


def degrade(config: DegradeConfig, image: np.ndarray, key: int) -> np.ndarray:
    """uint8 [H, W, 3] -> [H / scale, W / scale, 3]; random numbers are a function of `key` alone."""
    height, width = (side // config.scale for side in image.shape[:2])
    x = Image.fromarray(image)
    if config.kind == "bicubic":
        return np.asarray(x.resize((width, height), Image.Resampling.BICUBIC))
    generator = np.random.default_rng(rng.key(key, "degrade"))
    steps: list[Callable] = [_blur, _blur, _noise, _resize, _jpeg]  # those after _resize act on pixels of another size
    for i in generator.permutation(len(steps)):
        x = steps[i](x, generator)
    x = x.resize((width, height), RESAMPLE[generator.integers(3)])
    return np.asarray(_jpeg(x, generator))  # last, as in most files


def _blur(image: Image.Image, generator: Generator) -> Image.Image:
    """Gaussian blur of 0.1 to 2 pixels; anisotropic half of the time."""
    radii = generator.uniform(0.1, 2.0, 2) if generator.random() < 0.5 else (generator.uniform(0.1, 2.0),) * 2
    return image.filter(ImageFilter.GaussianBlur(tuple(float(r) for r in radii)))


def _noise(image: Image.Image, generator: Generator) -> Image.Image:
    """Gaussian noise in colour or gray, or signal-dependent noise like that of photon counting."""
    x = np.asarray(image, np.float32)
    kind, std = generator.integers(3), generator.uniform(1, 12)
    std = std * np.sqrt(x / 255 + 0.01) if kind == 2 else std
    x = x + std * generator.standard_normal((*x.shape[:2], 1 if kind == 1 else 3), dtype=np.float32)
    return Image.fromarray((x + 0.5).clip(0, 255).astype(np.uint8))


def _resize(image: Image.Image, generator: Generator) -> Image.Image:
    factor = generator.uniform(0.5, 1.2)
    size = tuple(max(1, round(side * factor)) for side in image.size)
    return image.resize(size, RESAMPLE[generator.integers(3)])


def _jpeg(image: Image.Image, generator: Generator) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=int(generator.integers(60, 96)))
    return Image.open(file).convert("RGB")
