"""Random inpainting masks like those of LaMa (Suvorov et al. 2022, sec. 3.3): boxes or strokes."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

from latentdiff import rng
from latentdiff.config import UserError


@dataclass(frozen=True)
class MasksConfig:
    box_fraction: float = 0.4  # fraction of images whose mask consists of boxes; the others' consist of strokes
    max_count: int = 4  # largest number of boxes or strokes per image
    box_size: tuple[float, ...] = (0.15, 0.6)  # smallest and largest side of a box, as fractions of the short side
    stroke_width: tuple[float, ...] = (0.04, 0.3)  # smallest and largest width, as fractions of the short side
    max_turns: int = 5  # largest number of segments of a stroke
    max_area: float = 0.7  # fraction of the image; larger masks are sampled again

    def __post_init__(self) -> None:
        for name in ("box_size", "stroke_width"):
            limits = getattr(self, name)
            if len(limits) != 2 or not 0 < limits[0] <= limits[1] <= 1:
                raise UserError(f"{name} of Masks is {limits}; it must be two increasing fractions such as 0.1,0.5")


def random_mask(config: MasksConfig, height: int, width: int, key: int) -> np.ndarray:
    """uint8 [height, width], 1 in the region to inpaint, which is never empty; a function of `key` alone."""
    for attempt in range(100):
        generator = np.random.default_rng(rng.key(key, "mask", attempt))
        image = Image.new("L", (width, height))
        draw = _draw_boxes if generator.random() < config.box_fraction else _draw_strokes
        draw(config, ImageDraw.Draw(image), np.array([width, height]), generator)
        mask = np.asarray(image, dtype=np.uint8)
        if 0 < mask.mean() <= config.max_area:
            return mask
    raise UserError(f"100 random masks were empty or larger than max_area={config.max_area} of Masks; raise it")


def _draw_boxes(config: MasksConfig, canvas: ImageDraw.ImageDraw, size: np.ndarray, generator: Generator) -> None:
    for _ in range(generator.integers(1, config.max_count + 1)):
        sides = generator.uniform(*config.box_size, 2) * size.min()
        corner = generator.uniform(0, 1, 2) * (size - sides).clip(0)
        canvas.rectangle((*corner, *(corner + sides - 1)), fill=1)


def _draw_strokes(config: MasksConfig, canvas: ImageDraw.ImageDraw, size: np.ndarray, generator: Generator) -> None:
    """Polylines with random directions and round ends and corners."""
    for _ in range(generator.integers(1, config.max_count + 1)):
        width = max(1.0, generator.uniform(*config.stroke_width) * size.min())
        start, angle = generator.uniform(0, 1, 2) * size, generator.uniform(0, 2 * np.pi)
        for _ in range(generator.integers(1, config.max_turns + 1)):
            angle += generator.uniform(-0.4, 0.4) * np.pi
            step = generator.uniform(0.1, 0.5) * size.min() * np.array([np.cos(angle), np.sin(angle)])
            end = (start + step).clip(0, size)
            canvas.line((*start, *end), fill=1, width=round(width))
            for point in (start, end):
                canvas.ellipse((*(point - width / 2), *(point + width / 2)), fill=1)
            start = end
