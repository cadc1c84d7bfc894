"""Scenes of coloured shapes and their rendering: antialiased outlines from signed distance functions."""

import math
from typing import NamedTuple

import numpy as np

COLOURS = {  # sRGB; far from each other, from the backgrounds, and from the mean of any two of them
    "red": (210, 20, 40),
    "orange": (255, 128, 0),
    "yellow": (255, 232, 60),
    "green": (30, 160, 60),
    "cyan": (60, 210, 230),
    "blue": (35, 75, 225),
    "purple": (120, 35, 155),
    "pink": (250, 95, 195),
}
BACKGROUNDS = {"white": (248, 248, 248), "gray": (150, 150, 150), "black": (14, 14, 14)}
SIZES = {"large": 0.195, "small": 0.14}  # mean radius as a fraction of the image's short side
RELATIONS = ("above", "below", "left of", "right of")


class ShapeObject(NamedTuple):
    """One object. x, y (the centre of its bounding box) and radius are in pixels from the top left corner."""

    kind: str
    colour: str
    size: str
    x: float
    y: float
    radius: float

    def box(self) -> tuple[float, float, float, float]:
        """Bounding box x0, y0, x1, y1 in pixels."""
        half_width, half_height = (self.radius * extent for extent in KINDS[self.kind][1])
        return self.x - half_width, self.y - half_height, self.x + half_width, self.y + half_height


class Scene(NamedTuple):
    background: str
    objects: tuple[ShapeObject, ...]


def relation(a: ShapeObject, b: ShapeObject) -> str:
    """Position of a relative to b, along the axis on which they are farther apart."""
    dx, dy = a.x - b.x, a.y - b.y
    if abs(dy) > abs(dx):
        return "above" if dy < 0 else "below"
    return "left of" if dx < 0 else "right of"


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Equilateral, pointing up: sides 2.1 long, height 1.05 * sqrt(3)."""
    return np.maximum(0.75**0.5 * np.abs(u) - 0.5 * v - 0.525 * 0.75**0.5, v - 1.05 * 0.75**0.5)


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Five tips at radius 1.1, notches at 0.5; by symmetry, the distance to one straight edge."""
    v = v - 0.105  # centres the bounding box
    angle = np.arctan2(u, -v) * (5 / (2 * np.pi))
    angle = np.abs(angle - np.rint(angle)) * (2 * np.pi / 5)  # 0 at a tip, pi / 5 at a notch
    distance = np.hypot(u, v)
    return (distance * np.cos(angle) - 1.1) * STAR_NORMAL[0] + distance * np.sin(angle) * STAR_NORMAL[1]


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    u, v = np.abs(u), np.abs(v)
    return np.maximum(np.maximum(u, v) - 1, np.minimum(u, v) - 0.34)


NOTCH = (0.5 * math.cos(math.pi / 5), 0.5 * math.sin(math.pi / 5))  # of the star, relative to a tip
STAR_NORMAL = np.array([NOTCH[1], 1.1 - NOTCH[0]]) / math.hypot(NOTCH[1], 1.1 - NOTCH[0])

# kind -> (signed distance to the outline, negative inside, as a function of u (right) and v (down),
#          (half width, half height) of the bounding box, centred at u = v = 0); all in units of the radius
KINDS = {
    "circle": (lambda u, v: np.hypot(u, v) - 1, (1.0, 1.0)),
    "square": (lambda u, v: np.maximum(np.abs(u), np.abs(v)) - 0.9, (0.9, 0.9)),
    "triangle": (_triangle, (1.05, 0.909)),
    "star": (_star, (1.046, 0.995)),
    "cross": (_cross, (1.0, 1.0)),
    "ring": (lambda u, v: np.abs(np.hypot(u, v) - 0.77) - 0.25, (1.02, 1.02)),
}
CLASS_INDEX = {kind: i for i, kind in enumerate(KINDS)}


def coverage(
    kind: str, x: np.ndarray, y: np.ndarray, radius: np.ndarray, window: tuple[int, int, int, int], edge: float = 1.0
) -> np.ndarray:
    """Fraction of each pixel that an object covers: [..., h, w] of the window (top, bottom, left, right).

    x, y, radius: numbers or arrays [..., 1, 1]; edge: width of the antialiasing ramp at the outline, in pixels.
    """
    top, bottom, left, right = window
    u = (np.arange(left, right) + 0.5 - x) / radius
    v = (np.arange(top, bottom)[:, None] + 0.5 - y) / radius
    return np.clip(0.5 - radius / edge * KINDS[kind][0](u, v), 0, 1)


def window(shape: ShapeObject, height: int, width: int) -> tuple[int, int, int, int]:
    """The pixels that an object touches: top, bottom, left, right (exclusive)."""
    x0, y0, x1, y1 = shape.box()
    return max(0, int(y0 - 0.5)), min(height, int(y1 + 1.5)), max(0, int(x0 - 0.5)), min(width, int(x1 + 1.5))


def draw(scene: Scene, height: int, width: int, edge: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Image uint8 [H, W, 3] and segmentation uint8 [H, W]: 0 is background, 1 + CLASS_INDEX[kind] an object."""
    image = np.empty((height, width, 3))
    image[:] = BACKGROUNDS[scene.background]
    segmentation = np.zeros((height, width), np.uint8)
    for shape in scene.objects:
        top, bottom, left, right = pixels = window(shape, height, width)
        alpha = coverage(shape.kind, shape.x, shape.y, shape.radius, pixels, edge)  # [h, w]
        region = image[top:bottom, left:right]
        region += alpha[:, :, None] * (np.array(COLOURS[shape.colour]) - region)
        segmentation[top:bottom, left:right][alpha > 0.5] = 1 + CLASS_INDEX[shape.kind]
    return (image + 0.5).astype(np.uint8), segmentation
