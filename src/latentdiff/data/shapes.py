"""The embedded data set: drawn scenes of one to three shapes with captions, made on the fly.

Scene i is a pure function of (seed, split, i). Some (colour, kind) pairs never occur, in any split, so that composition
can be measured on them.
"""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from latentdiff import keyed
from latentdiff.config import UserError, hash_of
from latentdiff.data.shapes_scene import BACKGROUNDS, COLOURS, KINDS, NUMBER, RELATIONS, SIZES, Scene, Thing, draw, relation

LEFT_OUT = frozenset({
    ("orange", "circle"), ("purple", "square"), ("red", "triangle"), ("green", "star"), ("cyan", "cross"), ("yellow", "ring"),
})  # fmt: skip
JITTER = 0.03  # of a radius, as a share
SPLITS = ("train", "val", "test")

# what a caption may say instead of the first, canonical choice
SIZE_WORDS = ({"large": "large ", "small": "small "}, {"large": "big ", "small": "little "}, {"large": "", "small": ""})
RELATION_WORDS = {
    "above": ("above", "over"),
    "below": ("below", "under"),
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
}
OPPOSITE = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}
FRAMES = ("{things} on a {background} background", "on a {background} background, {things}", "{things}")


@dataclass(frozen=True)
class Shapes:
    """Drawn scenes: kinds, colours, sizes, places, backgrounds."""

    height: int = 32  # of the pictures in pixels, at least 32
    width: int = 32  # of the pictures in pixels, at least 32
    count: int = 20000  # scenes to train on
    val_count: int = 500  # held-out scenes
    max_objects: int = 3  # in a scene: 1 to 3
    kinds: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross", "ring")  # of objects
    seed: int = 0  # which scenes


class ShapesDataset:
    """The scenes of one split: train, val or test."""

    def __init__(self, config: Shapes, split: str = "train") -> None:
        _check(config)
        assert split in SPLITS, f"split is {split!r}; there are {', '.join(SPLITS)}"
        self.config, self.split = config, split

    def __len__(self) -> int:
        return self.config.count if self.split == "train" else self.config.val_count

    def id(self, i: int) -> str:
        return f"{self.split}-{i:06d}"

    def scene(self, i: int) -> Scene:
        rng = random.Random(keyed.key(self.config.seed, "shapes", self.split, i))
        count = 1 + int(rng.random() * self.config.max_objects)
        return random_scene(self.config, [_pairs(self.config, False)] * count, rng)

    def record(self, i: int, key: int) -> dict:
        """id, caption (`key` alone words it), label (kind of the largest object) and boxes float32 [n, 5]: x0 y0 x1 y1 kind."""
        return self._record(self.scene(i), i, key)

    def item(self, i: int, key: int) -> dict:
        """The record, image uint8 [H, W, 3] and segmentation uint8 [H, W]: 0 is background, 1 + kind an object."""
        scene = self.scene(i)
        image, segmentation = draw(scene, self.config.height, self.config.width)
        return self._record(scene, i, key) | {"image": image, "segmentation": segmentation}

    def captions(self) -> list[str]:
        """Captions in which every word occurs: what a tokenizer needs."""
        return [caption(self.scene(i), keyed.key("captions", i)) for i in range(2000)]

    def fingerprint(self) -> str:
        """Hex hash of what the pixels depend on: the configuration, and the first pictures, lest the drawing changes."""
        digest = hashlib.blake2b(f"{hash_of(self.config)} {self.split}".encode())
        for i in range(8):
            digest.update(draw(self.scene(i), self.config.height, self.config.width)[0].tobytes())
        return digest.hexdigest()[:32]

    def _record(self, scene: Scene, i: int, key: int) -> dict:
        scale = np.array([self.config.width, self.config.height] * 2 + [1], np.float32)
        boxes = np.array([(*thing.box(), NUMBER[thing.kind]) for thing in scene.things], np.float32) / scale
        label = NUMBER[max(scene.things, key=lambda thing: thing.radius).kind]
        return {"id": self.id(i), "caption": caption(scene, key), "label": label, "boxes": boxes}


def prompts(
    config: Shapes, count: int, seed: int, objects: tuple[int, ...] = (1, 2), left_out: bool = False
) -> list[str]:
    """Canonical captions of scenes drawn with a seed of their own, as many of each number of objects.

    No object is a left-out (colour, kind) pair, or, with `left_out`, at least one object of each scene is.
    """
    _check(config)
    captions = []
    for i in range(count):
        rng = random.Random(keyed.key(seed, "prompts", i))
        pairs = [_pairs(config, False)] * objects[i % len(objects)]
        if left_out:
            pairs[int(rng.random() * len(pairs))] = _pairs(config, True)
        captions.append(caption(random_scene(config, pairs, rng)))
    return captions


def random_scene(config: Shapes, pairs: list[list[tuple[str, str]]], rng: random.Random) -> Scene:
    """A scene with one object for each list of (colour, kind) pairs that it may have."""
    background = rng.choice(tuple(BACKGROUNDS))
    looks = [(*rng.choice(options), rng.choice(tuple(SIZES))) for options in pairs]
    while True:
        things = [_thing(config, *look, rng) for look in looks]
        if len(things) == 2:
            return Scene(background, _related(config, things, rng.choice(RELATIONS), rng))
        if _apart(config, things):
            return Scene(background, tuple(things))
        looks = [(colour, kind, rng.choice(tuple(SIZES))) for colour, kind, _ in looks]  # three large ones rarely fit


def caption(scene: Scene, key: int | None = None) -> str:
    """The scene in words; the canonical caption without a key and for half of the keys, which names all there is."""
    rng = random.Random(key)
    choose: Callable = rng.choice if key is not None and rng.random() < 0.5 else lambda options: options[0]
    sizes = choose(SIZE_WORDS)
    names = [_with_article(f"{sizes[t.size]}{t.colour} {t.kind}") for t in scene.things]
    if len(names) == 2:
        where = relation(*scene.things)
        there, back = choose(RELATION_WORDS[where]), choose(RELATION_WORDS[OPPOSITE[where]])
        a, b = names
        text = choose((f"{a} {there} {b}", f"{b} {back} {a}", f"{a} and {b}"))
    else:
        text = ", ".join(names[:-1]) + " and " * (len(names) > 1) + names[-1]
    return choose(FRAMES).format(things=text, background=scene.background)


def _with_article(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _pairs(config: Shapes, left_out: bool) -> list[tuple[str, str]]:
    return [(c, k) for c in COLOURS for k in config.kinds if ((c, k) in LEFT_OUT) == left_out]


def _check(config: Shapes) -> None:
    for name in ("height", "width"):
        if getattr(config, name) < 32:
            raise UserError(f"data.{name} is {getattr(config, name)}; shapes can be told apart from 32 pixels on")
    for name in ("count", "val_count"):
        if getattr(config, name) < 1:
            raise UserError(f"data.{name} is {getattr(config, name)}; it must be at least 1")
    if not 1 <= config.max_objects <= 3:
        raise UserError(f"data.max_objects is {config.max_objects}; it can be 1, 2 or 3")
    unknown = [kind for kind in config.kinds if kind not in KINDS]
    if unknown or not config.kinds:
        raise UserError(f"data.kinds is {list(config.kinds)}; it can hold {', '.join(KINDS)}")


# ---- places; lengths are in pixels


def _thing(config: Shapes, colour: str, kind: str, size: str, rng: random.Random) -> Thing:
    """An object of about that size anywhere in the picture, at least a margin from its edge."""
    side = min(config.height, config.width)
    radius = side * SIZES[size] * (1 + JITTER * (2 * rng.random() - 1))
    half = [radius * extent + side / 32 for extent in KINDS[kind][1]]
    x, y = (h + rng.random() * (length - 2 * h) for h, length in zip(half, (config.width, config.height)))
    return Thing(kind, colour, size, x, y, radius)


def _apart(config: Shapes, things: list[Thing]) -> bool:
    """Whether all bounding boxes keep the gap."""
    gap, boxes = min(config.height, config.width) / 16, [thing.box() for thing in things]
    return all(
        a[0] - b[2] >= gap or b[0] - a[2] >= gap or a[1] - b[3] >= gap or b[1] - a[3] >= gap
        for i, a in enumerate(boxes)
        for b in boxes[:i]
    )


def _related(config: Shapes, things: list[Thing], where: str, rng: random.Random) -> tuple[Thing, ...]:
    """Two objects moved so that the first is clearly `where` of the second: across at most half as far as along."""
    axis = int(where in ("above", "below"))  # 0: x, 1: y
    side, length = min(config.height, config.width), (config.width, config.height)[axis]
    sign = 1 if where in ("above", "left of") else -1
    near, far = things[::sign]
    half_near, half_far = (thing.radius * KINDS[thing.kind][1][axis] for thing in (near, far))
    apart = half_near + side / 16 + half_far
    slack = length - side / 16 - half_near - half_far - apart
    first, second = sorted((rng.random(), rng.random()))
    start = side / 32 + half_near + first * slack
    along, name = (start, start + apart + (second - first) * slack), "xy"[axis]
    across = "yx"[axis]
    pair = [near._replace(**{name: along[0]}), far._replace(**{name: along[1]})]
    while abs(getattr(pair[0], across) - getattr(pair[1], across)) > (along[1] - along[0]) / 2:
        pair = [
            thing._replace(**{across: getattr(_thing(config, thing.colour, thing.kind, thing.size, rng), across)})
            for thing in pair
        ]
    return tuple(pair[::sign])
