"""The built-in dataset: rendered scenes of one to three coloured shapes with captions, rendered when they are read.

Scene i is a pure function of (seed, split, i). Some (colour, kind) pairs never occur, in any split, so that
compositional generalization can be measured on them.
"""

import hashlib
import itertools
import random
from dataclasses import dataclass

import numpy as np

from latentdiff import rng
from latentdiff.config import UserError
from latentdiff.data.dataset import Dataset
from latentdiff.data.shapes.captions import caption
from latentdiff.data.shapes.scene import (
    BACKGROUNDS,
    CLASS_INDEX,
    COLOURS,
    KINDS,
    RELATIONS,
    SIZES,
    Scene,
    ShapeObject,
    draw,
)

HELD_OUT_PAIRS = frozenset({
    ("orange", "circle"), ("purple", "square"), ("red", "triangle"),
    ("green", "star"), ("cyan", "cross"), ("yellow", "ring"),
})  # fmt: skip
JITTER = 0.03  # largest relative change of a radius
MARGIN, GAP = 1 / 32, 1 / 16  # to the image's edge and between bounding boxes, as fractions of the short side


@dataclass(frozen=True)
class ShapesConfig:
    """Rendered scenes of coloured shapes."""

    height: int = 32  # of the images in pixels, at least 32
    width: int = 32  # of the images in pixels, at least 32
    count: int = 20000  # training images
    val_count: int = 500  # validation images
    max_objects: int = 3  # per image: 1 to 3
    kinds: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross", "ring")  # of objects
    wording: str = "varied"  # of captions: varied (may omit attributes) or full (one template with all attributes)
    seed: int = 0  # of the scenes

    @property
    def image_size(self) -> tuple[int, int]:
        return self.height, self.width

    def open(self, split: str) -> "ShapesDataset":
        return ShapesDataset(self, split)

    def check(self) -> None:
        """Raise UserError for settings that are out of range."""
        for name, minimum in (("height", 32), ("width", 32), ("count", 1), ("val_count", 1)):
            if getattr(self, name) < minimum:
                raise UserError(f"data.{name} is {getattr(self, name)}; it must be at least {minimum}")
        if self.wording not in ("varied", "full"):
            raise UserError(f"data.wording is {self.wording!r}; it must be varied or full")
        if not 1 <= self.max_objects <= 3:
            raise UserError(f"data.max_objects is {self.max_objects}; it must be 1, 2 or 3")
        if not self.kinds or not KINDS.keys() >= set(self.kinds):
            raise UserError(f"data.kinds is {list(self.kinds)}; it must hold some of {', '.join(KINDS)}")


class ShapesDataset(Dataset):
    """The scenes of one split: train, val or test."""

    def __init__(self, config: ShapesConfig, split: str = "train") -> None:
        super().__init__(config, split)
        self.label_names = self.category_names = list(KINDS)
        self.has_captions = True

    def __len__(self) -> int:
        return self.config.count if self.split == "train" else self.config.val_count

    def id(self, i: int) -> str:
        return f"{self.split}-{i:06d}"

    def scene(self, i: int) -> Scene:
        generator = random.Random(rng.key(self.config.seed, "shapes", self.split, i))
        count = 1 + int(generator.random() * self.config.max_objects)
        return random_scene(self.config, [_pairs(self.config, held_out=False)] * count, generator)

    def record(self, i: int, key: int) -> dict:
        """id, caption, label (kind of the largest object), boxes float32 [n, 5]: x0 y0 x1 y1 (in 0..1) kind.

        `key` chooses the wording of the caption; everything else depends on i only.
        """
        return self._record(self.scene(i), i, key)

    def item(self, i: int, key: int) -> dict:
        """The record, image uint8 [H, W, 3] and segmentation uint8 [H, W]: 0 is background, 1 + kind an object."""
        scene = self.scene(i)
        image, segmentation = draw(scene, self.config.height, self.config.width)
        return self._record(scene, i, key) | {"image": image, "segmentation": segmentation}

    def captions(self) -> list[str]:
        """Captions with the whole vocabulary, to train a tokenizer."""
        return [self._caption(self.scene(i), rng.key("captions", i)) for i in range(2000)]

    def fingerprint(self) -> str:
        """Hex hash of what determines the pixels: the settings, and some images in case the rendering changes."""
        c = self.config
        settings = (c.height, c.width, c.max_objects, c.kinds, c.seed, self.split, len(self))
        digest = hashlib.blake2b(repr(settings).encode())
        for i in range(8):
            digest.update(draw(self.scene(i), c.height, c.width)[0].tobytes())
        return digest.hexdigest()[:32]

    def _caption(self, scene: Scene, key: int) -> str:
        return caption(scene, key if self.config.wording == "varied" else None)

    def _record(self, scene: Scene, i: int, key: int) -> dict:
        scale = np.array([self.config.width, self.config.height] * 2 + [1], np.float32)
        boxes = np.array([(*shape.box(), CLASS_INDEX[shape.kind]) for shape in scene.objects], np.float32) / scale
        label = CLASS_INDEX[max(scene.objects, key=lambda shape: shape.radius).kind]
        return {"id": self.id(i), "caption": self._caption(scene, key), "label": label, "boxes": boxes}


def prompts(
    config: ShapesConfig, count: int, seed: int, num_objects: tuple[int, ...] = (1, 2), held_out: bool = False
) -> list[str]:
    """Canonical captions of random scenes with each number of objects in turn (at most max_objects).

    held_out: at least one object of each scene is a held-out (colour, kind) pair; otherwise none is.
    """
    config.check()
    captions = []
    for i in range(count):
        generator = random.Random(rng.key(seed, "prompts", i))
        pairs = [_pairs(config, held_out=False)] * min(num_objects[i % len(num_objects)], config.max_objects)
        if held_out:
            pairs[int(generator.random() * len(pairs))] = _pairs(config, held_out=True)
        captions.append(caption(random_scene(config, pairs, generator)))
    return captions


def random_scene(config: ShapesConfig, pairs: list[list[tuple[str, str]]], generator: random.Random) -> Scene:
    """A random scene; pairs: the allowed (colour, kind) pairs of each object."""
    background = generator.choice(tuple(BACKGROUNDS))
    attributes = [(*generator.choice(allowed), generator.choice(tuple(SIZES))) for allowed in pairs]
    while True:
        objects = [_random_object(config, *values, generator) for values in attributes]
        if len(objects) == 2:
            return Scene(background, _arrange(config, objects, generator.choice(RELATIONS), generator))
        if _are_separate(config, objects):
            return Scene(background, tuple(objects))
        attributes = [(*pair, generator.choice(tuple(SIZES))) for *pair, _ in attributes]  # three large ones rarely fit


def _pairs(config: ShapesConfig, held_out: bool) -> list[tuple[str, str]]:
    return [(c, k) for c in COLOURS for k in config.kinds if ((c, k) in HELD_OUT_PAIRS) == held_out]


# ---- positions of objects; lengths are in pixels


def _random_object(config: ShapesConfig, colour: str, kind: str, size: str, generator: random.Random) -> ShapeObject:
    radius = min(config.height, config.width) * SIZES[size] * (1 + JITTER * (2 * generator.random() - 1))
    x, y = (_random_position(config, radius, kind, axis, generator) for axis in (0, 1))
    return ShapeObject(kind, colour, size, x, y, radius)


def _random_position(config: ShapesConfig, radius: float, kind: str, axis: int, generator: random.Random) -> float:
    """A random x (axis 0) or y (axis 1) that keeps the object a margin away from the edges."""
    low = min(config.height, config.width) * MARGIN + radius * KINDS[kind][1][axis]
    return low + generator.random() * ((config.width, config.height)[axis] - 2 * low)


def _are_separate(config: ShapesConfig, objects: list[ShapeObject]) -> bool:
    """Whether all bounding boxes are at least the gap apart."""
    gap, pairs = min(config.height, config.width) * GAP, itertools.combinations([o.box() for o in objects], 2)
    return all(max(a[0] - b[2], b[0] - a[2], a[1] - b[3], b[1] - a[3]) >= gap for a, b in pairs)


def _arrange(
    config: ShapesConfig, objects: list[ShapeObject], relation: str, generator: random.Random
) -> tuple[ShapeObject, ...]:
    """Two objects moved into a relation that is unambiguous: the offset across is at most half of that along it."""
    along = int(relation in ("above", "below"))  # axis of the relation: 0 is x, 1 is y
    in_order = relation in ("above", "left of")
    pair = objects if in_order else objects[::-1]  # the upper or left one first
    side, half = min(config.height, config.width), [shape.radius * KINDS[shape.kind][1][along] for shape in pair]
    slack = (config.width, config.height)[along] - 2 * sum(half) - side * (2 * MARGIN + GAP)
    near, far = sorted((generator.random() * slack, generator.random() * slack))
    positions = near + side * MARGIN + half[0], far + side * (MARGIN + GAP) + 2 * half[0] + half[1]
    while True:
        across = [_random_position(config, shape.radius, shape.kind, 1 - along, generator) for shape in pair]
        if abs(across[0] - across[1]) <= (positions[1] - positions[0]) / 2:
            break
    axes = "xy"[along], "yx"[along]
    pair = [shape._replace(**dict(zip(axes, xy))) for shape, xy in zip(pair, zip(positions, across))]
    return tuple(pair if in_order else pair[::-1])
