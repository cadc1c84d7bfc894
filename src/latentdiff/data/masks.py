"""Which part of a picture is to be filled: random holes like those of LaMa (Suvorov et al. 2022, sec. 3.3)."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from latentdiff import rng
from latentdiff.config import UserError


@dataclass(frozen=True)
class MasksConfig:
    boxes: float = 0.4  # share of pictures whose hole is boxes; the others' is strokes
    count: int = 4  # most boxes or strokes of a picture
    box: tuple[float, ...] = (0.15, 0.6)  # sides of a box as shares of the short side, from to
    width: tuple[float, ...] = (0.04, 0.3)  # of a stroke as a share of the short side, from (thin) to (wide)
    turns: int = 5  # most corners of a stroke
    largest: float = 0.7  # share of the picture; a larger hole is drawn again

    def __post_init__(self) -> None:
        for name in ("box", "width"):
            sides = getattr(self, name)
            if len(sides) != 2 or not 0 < sides[0] <= sides[1] <= 1:
                raise UserError(f"masks' {name} is {sides}; it must be two shares such as 0.1,0.5")


def random_mask(config: MasksConfig, height: int, width: int, key: int) -> np.ndarray:
    """uint8 [height, width], 1 where the picture is to be filled; a function of `key` alone, never empty."""
    for attempt in range(100):
        generator = np.random.default_rng(rng.key(key, "mask", attempt))
        mask = Image.new("L", (width, height))
        draw = _boxes if generator.random() < config.boxes else _strokes
        draw(config, ImageDraw.Draw(mask), np.array([width, height]), generator)
        holes = np.asarray(mask, dtype=np.uint8)
        if 0 < holes.mean() <= config.largest:
            return holes
    raise UserError(f"100 random masks were empty or covered more than masks' largest={config.largest} of the picture")


def _boxes(config: MasksConfig, draw: ImageDraw.ImageDraw, size: np.ndarray, generator: np.random.Generator) -> None:
    for _ in range(generator.integers(1, config.count + 1)):
        sides = rng.uniform(*config.box, 2) * size.min()
        corner = rng.uniform(0, 1, 2) * (size - sides).clip(0)
        draw.rectangle((*corner, *(corner + sides - 1)), fill=1)


def _strokes(config: MasksConfig, draw: ImageDraw.ImageDraw, size: np.ndarray, generator: np.random.Generator) -> None:
    """Lines that wander about with round ends and corners."""
    for _ in range(generator.integers(1, config.count + 1)):
        thick = max(1.0, rng.uniform(*config.width) * size.min())
        at, angle = rng.uniform(0, 1, 2) * size, rng.uniform(0, 2 * np.pi)
        for _ in range(generator.integers(1, config.turns + 1)):
            angle += rng.uniform(-0.4, 0.4) * np.pi
            to = (at + rng.uniform(0.1, 0.5) * size.min() * np.array([np.cos(angle), np.sin(angle)])).clip(0, size)
            draw.line((*at, *to), fill=1, width=round(thick))
            for end in (at, to):
                draw.ellipse((*(end - thick / 2), *(end + thick / 2)), fill=1)
            at = to
