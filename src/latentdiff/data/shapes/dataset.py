"""The embedded data set: drawn scenes of one to three shapes with captions, made on the fly.

Scene i is a pure function of (seed, split, i). Some (colour, kind) pairs never occur, in any split, so that composition
can be measured on them.
"""

import hashlib
import random
from dataclasses import dataclass

import numpy as np

from latentdiff import rng
from latentdiff.config import UserError
from latentdiff.data.shapes.captions import caption
from latentdiff.data.shapes.scene import BACKGROUNDS, COLOURS, KINDS, NUMBER, RELATIONS, SIZES, Scene, Thing, draw

LEFT_OUT = frozenset({
    ("orange", "circle"), ("purple", "square"), ("red", "triangle"),
    ("green", "star"), ("cyan", "cross"), ("yellow", "ring"),
})  # fmt: skip
JITTER = 0.03  # of a radius, as a share of it
MARGIN, GAP = 1 / 32, 1 / 16  # to the picture's edge and between bounding boxes, as shares of the short side
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class ShapesConfig:
    """Drawn scenes: kinds, colours, sizes, places, backgrounds."""

    height: int = 32  # of the pictures in pixels, at least 32
    width: int = 32  # of the pictures in pixels, at least 32
    count: int = 20000  # scenes to train on
    val_count: int = 500  # held-out scenes
    max_objects: int = 3  # in a scene: 1 to 3
    kinds: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross", "ring")  # of objects
    wording: str = "varied"  # of captions: varied, some leave things out; or full, one template that names all
    seed: int = 0  # which scenes

    @property
    def image_size(self) -> tuple[int, int]:
        return self.height, self.width

    def open(self, split: str):
        return ShapesDataset(self, split)


class ShapesDataset:
    """The scenes of one split: train, val or test."""

    def __init__(self, config: ShapesConfig, split: str = "train") -> None:
        _check(config)
        assert split in SPLITS, f"split is {split!r}; there are {', '.join(SPLITS)}"
        self.config, self.split = config, split
        self.label_names = self.category_names = list(KINDS)

    def __len__(self) -> int:
        return self.config.count if self.split == "train" else self.config.val_count

    def id(self, i: int) -> str:
        return f"{self.split}-{i:06d}"

    def scene(self, i: int) -> Scene:
        generator = random.Random(rng.key(self.config.seed, "shapes", self.split, i))
        count = 1 + int(generator.random() * self.config.max_objects)
        return random_scene(self.config, [_pairs(self.config, False)] * count, generator)

    def record(self, i: int, key: int) -> dict:
        """id, caption, label (kind of the largest object), boxes float32 [n, 5]: x0 y0 x1 y1 (in 0..1) kind.

        `key` alone words the caption; everything else depends on i only.
        """
        return self._record(self.scene(i), i, key)

    def item(self, i: int, key: int) -> dict:
        """The record, image uint8 [H, W, 3] and segmentation uint8 [H, W]: 0 is background, 1 + kind an object."""
        scene = self.scene(i)
        image, segmentation = draw(scene, self.config.height, self.config.width)
        return self._record(scene, i, key) | {"image": image, "segmentation": segmentation}

    def captions(self) -> list[str]:
        """Captions in which every word occurs: what a tokenizer needs."""
        return [self._caption(self.scene(i), rng.key("captions", i)) for i in range(2000)]

    def fingerprint(self) -> str:
        """Hex hash of what the pixels depend on: the configuration, and the first pictures: the drawing may change."""
        c, parts = self.config, (self.split, len(self))
        digest = hashlib.blake2b(repr((c.height, c.width, c.max_objects, c.kinds, c.seed, *parts)).encode())
        for i in range(8):
            digest.update(draw(self.scene(i), c.height, c.width)[0].tobytes())
        return digest.hexdigest()[:32]

    def _caption(self, scene: Scene, key: int) -> str:
        return caption(scene, key if self.config.wording == "varied" else None)

    def _record(self, scene: Scene, i: int, key: int) -> dict:
        scale = np.array([self.config.width, self.config.height] * 2 + [1], np.float32)
        boxes = np.array([(*thing.box(), NUMBER[thing.kind]) for thing in scene.things], np.float32) / scale
        label = NUMBER[max(scene.things, key=lambda thing: thing.radius).kind]
        return {"id": self.id(i), "caption": self._caption(scene, key), "label": label, "boxes": boxes}


def prompts(
    config: ShapesConfig, count: int, seed: int, objects: tuple[int, ...] = (1, 2), left_out: bool = False
) -> list[str]:
    """Canonical captions of scenes with a seed of their own, as many of each number of objects (at most max_objects).

    No object is a left-out (colour, kind) pair, or, with `left_out`, at least one object of each scene is.
    """
    _check(config)
    captions = []
    for i in range(count):
        generator = random.Random(rng.key(seed, "prompts", i))
        pairs = [_pairs(config, False)] * min(objects[i % len(objects)], config.max_objects)
        if left_out:
            pairs[int(generator.random() * len(pairs))] = _pairs(config, True)
        captions.append(caption(random_scene(config, pairs, generator)))
    return captions


def random_scene(config: ShapesConfig, pairs: list[list[tuple[str, str]]], generator: random.Random) -> Scene:
    """A scene with one object for each list of (colour, kind) pairs that it may have."""
    background = generator.choice(tuple(BACKGROUNDS))
    looks = [(*generator.choice(options), generator.choice(tuple(SIZES))) for options in pairs]
    while True:
        things = [_thing(config, *look, generator) for look in looks]
        if len(things) == 2:
            return Scene(background, _related(config, things, generator.choice(RELATIONS), generator))
        if _apart(config, things):
            return Scene(background, tuple(things))
        looks = [
            (colour, kind, generator.choice(tuple(SIZES))) for colour, kind, _ in looks
        ]  # three large ones rarely fit


def _pairs(config: ShapesConfig, left_out: bool) -> list[tuple[str, str]]:
    return [(c, k) for c in COLOURS for k in config.kinds if ((c, k) in LEFT_OUT) == left_out]


def _check(config: ShapesConfig) -> None:
    for name in ("height", "width"):
        if getattr(config, name) < 32:
            raise UserError(f"data.{name} is {getattr(config, name)}; shapes can be told apart from 32 pixels on")
    for name in ("count", "val_count"):
        if getattr(config, name) < 1:
            raise UserError(f"data.{name} is {getattr(config, name)}; it must be at least 1")
    if config.wording not in ("varied", "full"):
        raise UserError(f"data.wording is {config.wording!r}; it can be varied or full")
    if not 1 <= config.max_objects <= 3:
        raise UserError(f"data.max_objects is {config.max_objects}; it can be 1, 2 or 3")
    unknown = [kind for kind in config.kinds if kind not in KINDS]
    if unknown or not config.kinds:
        raise UserError(f"data.kinds is {list(config.kinds)}; it can hold {', '.join(KINDS)}")


# ---- places; lengths are in pixels


def _thing(config: ShapesConfig, colour: str, kind: str, size: str, generator: random.Random) -> Thing:
    """An object of about that size, anywhere in the picture."""
    radius = min(config.height, config.width) * SIZES[size] * (1 + JITTER * (2 * generator.random() - 1))
    x, y = (_place(config, radius, kind, axis, generator) for axis in (0, 1))
    return Thing(kind, colour, size, x, y, radius)


def _place(config: ShapesConfig, radius: float, kind: str, axis: int, generator: random.Random) -> float:
    """A random x (axis 0) or y (axis 1) that keeps the object a margin away from the edges."""
    low = min(config.height, config.width) * MARGIN + radius * KINDS[kind][1][axis]
    return low + generator.random() * ((config.width, config.height)[axis] - 2 * low)


def _apart(config: ShapesConfig, things: list[Thing]) -> bool:
    """Whether all bounding boxes keep the gap."""
    gap, boxes = min(config.height, config.width) * GAP, [thing.box() for thing in things]
    return all(
        max(a[0] - b[2], b[0] - a[2], a[1] - b[3], b[1] - a[3]) >= gap for i, a in enumerate(boxes) for b in boxes[:i]
    )


def _related(config: ShapesConfig, things: list[Thing], where: str, generator: random.Random) -> tuple[Thing, ...]:
    """Two objects moved so that the first is clearly `where` of the second: across at most half as far as along."""
    along = int(where in ("above", "below"))  # the axis: 0 is x, 1 is y
    forth = where in ("above", "left of")
    pair = things if forth else things[::-1]  # the upper or left one first
    side, half = min(config.height, config.width), [thing.radius * KINDS[thing.kind][1][along] for thing in pair]
    slack = (config.width, config.height)[along] - 2 * sum(half) - side * (2 * MARGIN + GAP)
    near, far = sorted((generator.random() * slack, generator.random() * slack))
    starts = near + side * MARGIN + half[0], far + side * (MARGIN + GAP) + 2 * half[0] + half[1]
    while True:
        places = [_place(config, thing.radius, thing.kind, 1 - along, generator) for thing in pair]
        if abs(places[0] - places[1]) <= (starts[1] - starts[0]) / 2:
            break
    names = "xy"[along], "yx"[along]
    pair = [thing._replace(**dict(zip(names, at))) for thing, at in zip(pair, zip(starts, places))]
    return tuple(pair if forth else pair[::-1])
