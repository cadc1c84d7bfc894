"""What a drawn scene is made of, and how it is drawn: antialiased outlines by signed distance."""

import math
from typing import NamedTuple

import numpy as np

COLOURS = {  # sRGB; far from each other, from the backgrounds, and from half-and-half mixtures of any of them
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
SIZES = {"large": 0.195, "small": 0.14}  # mean radius as a share of the picture's short side
RELATIONS = ("above", "below", "left of", "right of")


class Thing(NamedTuple):
    """One object; x, y is the centre of its bounding box. Pixels, from the picture's top left corner."""

    kind: str
    colour: str
    size: str
    x: float
    y: float
    radius: float

    def box(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1 in pixels."""
        half_width, half_height = (self.radius * extent for extent in KINDS[self.kind][1])
        return self.x - half_width, self.y - half_height, self.x + half_width, self.y + half_height


class Scene(NamedTuple):
    background: str
    things: tuple[Thing, ...]


def relation(a: Thing, b: Thing) -> str:
    """Where a is, seen from b, along the axis on which they are farther apart."""
    dx, dy = a.x - b.x, a.y - b.y
    if abs(dy) > abs(dx):
        return "above" if dy < 0 else "below"
    return "left of" if dx < 0 else "right of"


def _circle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.hypot(u, v) - 1


def _square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u), np.abs(v)) - 0.9


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Equilateral, pointing up: sides 2.1 long, height 1.05 * sqrt(3)."""
    return np.maximum(0.75**0.5 * np.abs(u) - 0.5 * v - 0.525 * 0.75**0.5, v - 1.05 * 0.75**0.5)


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Five tips at 1.1, notches at 0.5: folded into one half tip, which ends at a straight line."""
    v = v - 0.105  # its bounding box, not its middle, is centred
    angle = np.arctan2(u, -v) * (5 / (2 * np.pi))
    angle = np.abs(angle - np.rint(angle)) * (2 * np.pi / 5)  # 0 at a tip, pi / 5 at a notch
    distance = np.hypot(u, v)
    return (distance * np.cos(angle) - 1.1) * STAR_NORMAL[0] + distance * np.sin(angle) * STAR_NORMAL[1]


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    u, v = np.abs(u), np.abs(v)
    return np.maximum(np.maximum(u, v) - 1, np.minimum(u, v) - 0.34)


def _ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.abs(np.hypot(u, v) - 0.77) - 0.25


NOTCH = (0.5 * math.cos(math.pi / 5), 0.5 * math.sin(math.pi / 5))  # of the star, seen along its tip
STAR_NORMAL = np.array([NOTCH[1], 1.1 - NOTCH[0]]) / math.hypot(NOTCH[1], 1.1 - NOTCH[0])

# kind -> signed distance to the outline (negative inside) at u to the right and v down, in units of the radius;
#         half width and half height of the bounding box, whose centre is u = v = 0
KINDS = {
    "circle": (_circle, (1.0, 1.0)),
    "square": (_square, (0.9, 0.9)),
    "triangle": (_triangle, (1.05, 0.909)),
    "star": (_star, (1.046, 0.995)),
    "cross": (_cross, (1.0, 1.0)),
    "ring": (_ring, (1.02, 1.02)),
}
NUMBER = {kind: i for i, kind in enumerate(KINDS)}  # class labels


def coverage(
    kind: str, x: np.ndarray, y: np.ndarray, radius: np.ndarray, window: tuple[int, int, int, int], edge: float = 1.0
) -> np.ndarray:
    """How much of each pixel an object covers, 0..1; its outline is a ramp `edge` pixels wide.

    x, y, radius [..., 1, 1] or numbers; window (top, bottom, left, right) in pixels -> [..., h, w] of the window.
    """
    top, bottom, left, right = window
    u = (np.arange(left, right) + 0.5 - x) / radius
    v = (np.arange(top, bottom)[:, None] + 0.5 - y) / radius
    return np.clip(0.5 - radius / edge * KINDS[kind][0](u, v), 0, 1)


def window(thing: Thing, height: int, width: int) -> tuple[int, int, int, int]:
    """The pixels that an object touches: top, bottom, left, right (exclusive)."""
    x0, y0, x1, y1 = thing.box()
    return max(0, int(y0 - 0.5)), min(height, int(y1 + 1.5)), max(0, int(x0 - 0.5)), min(width, int(x1 + 1.5))


def draw(scene: Scene, height: int, width: int, edge: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Picture uint8 [H, W, 3] and segmentation uint8 [H, W]: 0 is background, 1 + NUMBER[kind] an object."""
    picture = np.empty((height, width, 3))
    picture[:] = BACKGROUNDS[scene.background]
    segmentation = np.zeros((height, width), np.uint8)
    for thing in scene.things:
        top, bottom, left, right = pixels = window(thing, height, width)
        alpha = coverage(thing.kind, thing.x, thing.y, thing.radius, pixels, edge)  # [h, w]
        part = picture[top:bottom, left:right]
        part += alpha[:, :, None] * (np.array(COLOURS[thing.colour]) - part)
        segmentation[top:bottom, left:right][alpha > 0.5] = 1 + NUMBER[thing.kind]
    return (picture + 0.5).astype(np.uint8), segmentation
