"""A deterministic reader of drawn scenes: what is in a picture, and whether it is what a caption asks for."""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from latentdiff.data.shapes.captions import SampleSpec, parse
from latentdiff.data.shapes.scene import (
    BACKGROUNDS,
    COLOURS,
    KINDS,
    SIZES,
    Scene,
    Thing,
    coverage,
    draw,
    relation,
    window,
)

MIN_PSNR = 20.0  # dB, of the whole picture against the scene drawn again
# limits on squared errors, summed over RGB of a range of 0..1
MAX_LOCAL = 0.07  # mean over any patch of an eighth of the short side
MAX_STRAY = 0.015  # the same between the objects, against the background as it is: nothing else is there
MAX_UNLIKE = 0.2  # sum over an object's window, as a share of what the object changes there
SOFT = 0.15  # width of a blurred outline, as a share of the short side
FOREGROUND = 0.22  # least distance of an object's pixels from the background's colour
SPECK = 0.01  # regions smaller than this share of the squared short side are no objects
STEP = 0.5  # pixels, of derivatives by x, y, radius; a smaller one sees nothing where an edge lies between pixels
PROBES = STEP * np.concatenate([np.zeros((1, 3)), np.eye(3), -np.eye(3)])  # [7, 3]


# ---- pictures -> scenes


def read(image: np.ndarray | Tensor) -> Scene | None:
    """The scene in a picture, uint8 [H, W, 3] or float [3, H, W] in [-1, 1]; None when it is no clean drawn scene."""
    picture = _picture(image)
    scene = look(picture)
    return scene if scene is not None and explains(scene, picture) else None


def look(picture: np.ndarray) -> Scene | None:
    """The best reading of float [H, W, 3] in 0..1, well fitting or not; None without one to three objects."""
    height, width, _ = picture.shape
    ground = _ground(picture)
    regions = _regions(np.linalg.norm(picture - ground, axis=2) > FOREGROUND)
    regions = [region for region in regions if region.sum() > SPECK * min(height, width) ** 2]
    if not 1 <= len(regions) <= 3:
        return None
    return Scene(_nearest(ground, BACKGROUNDS), tuple(_thing(picture, ground, region) for region in regions))


def explains(scene: Scene, picture: np.ndarray) -> bool:
    """Whether the scene, drawn again, is the picture: as a whole, in every patch, and in each object's window.

    An object is also refused as blurred where a soft outline would be nearer to the picture than the sharp one.
    """
    height, width, _ = picture.shape
    side, ground = min(height, width), np.array(BACKGROUNDS[scene.background]) / 255
    sharp, soft = (draw(scene, height, width, edge)[0] / 255 for edge in (1.0, SOFT * side))
    error, soft_error, signal = (_square(a - b) for a, b in ((sharp, picture), (soft, picture), (sharp, ground)))
    stray = _square(picture - _ground(picture))
    windows = [
        np.s_[top:bottom, left:right] for top, bottom, left, right in (window(t, height, width) for t in scene.things)
    ]
    for place in windows:
        stray[place] = 0
        if error[place].sum() > min(soft_error[place].sum(), MAX_UNLIKE * signal[place].sum()):
            return False
    whole = error.mean() / 3 <= 10 ** (-MIN_PSNR / 10)
    return whole and _patches(error, side // 8).max() <= MAX_LOCAL and _patches(stray, side // 8).max() <= MAX_STRAY


def _picture(image: np.ndarray | Tensor) -> np.ndarray:
    """uint8 [H, W, 3] or float [3, H, W] in [-1, 1] -> float64 [H, W, 3] in 0..1."""
    if isinstance(image, Tensor):
        image = image.detach().cpu().float().numpy() if image.is_floating_point() else image.cpu().numpy()
    if image.dtype == np.uint8:
        return image / 255.0
    return np.clip(image.transpose(1, 2, 0).astype(np.float64) / 2 + 0.5, 0, 1)


def _ground(picture: np.ndarray) -> np.ndarray:
    """The background's colour: the median along the border, which no object touches."""
    return np.median(np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]]), axis=0)


def _square(difference: np.ndarray) -> np.ndarray:
    return (difference**2).sum(axis=-1)  # [H, W, 3] -> [H, W]


def _regions(mask: np.ndarray) -> list[np.ndarray]:
    """The connected parts (4 neighbours) of bool [H, W], each as bool [H, W]; no more than 8, the largest."""
    labels = np.pad(np.arange(1, mask.size + 1).reshape(mask.shape) * mask, 1)
    inner = labels[1:-1, 1:-1]
    while True:  # the largest number spreads
        around = np.maximum.reduce([inner, labels[:-2, 1:-1], labels[2:, 1:-1], labels[1:-1, :-2], labels[1:-1, 2:]])
        around *= mask
        if (around == inner).all():
            break
        inner[:] = around
    names, counts = np.unique(inner[mask], return_counts=True)
    return [inner == name for name in names[np.argsort(-counts, kind="stable")][:8]]


def _thing(picture: np.ndarray, ground: np.ndarray, region: np.ndarray) -> Thing:
    """The object whose pixels are `region`: its colour from the purest ones, its kind by drawing each at its best."""
    rows, columns = np.nonzero(region)
    height, width = region.shape
    top, bottom = max(0, rows.min() - 1), min(height, rows.max() + 2)
    left, right = max(0, columns.min() - 1), min(width, columns.max() + 2)
    contrast = picture[region] - ground
    strength = np.linalg.norm(contrast, axis=1)
    pure = np.median(contrast[strength >= np.quantile(strength, 0.6)], axis=0)
    alpha = (picture[top:bottom, left:right] - ground) @ pure / (pure @ pure)  # [h, w], 0 outside and 1 inside
    fits = [(*_fit(kind, alpha, (top, bottom, left, right)), kind) for kind in KINDS]
    _, (x, y, radius), kind = min(fits, key=lambda fit: fit[0])
    middle = sum(SIZES.values()) / 2 * min(height, width)
    size = "large" if radius > middle else "small"
    return Thing(kind, _nearest(ground + pure, COLOURS), size, float(x), float(y), float(radius))


def _fit(kind: str, alpha: np.ndarray, pixels: tuple[int, int, int, int]) -> tuple[float, np.ndarray]:
    """Gauss-Newton for x, y, radius of a kind: the squared error and the place of the best step."""
    top, bottom, left, right = pixels
    half_width, half_height = KINDS[kind][1]
    at = np.array(
        [(left + right) / 2, (top + bottom) / 2, (right - left - 2 + bottom - top - 2) / 2 / (half_width + half_height)]
    )
    best = (math.inf, at)
    for _ in range(5):
        x, y, radius = (at + PROBES).T[:, :, None, None]
        drawn = coverage(kind, x, y, radius, pixels).reshape(7, -1)
        error = alpha.ravel() - drawn[0]
        best = min(best, (float(error @ error), at), key=lambda fit: fit[0])
        slopes = (drawn[1:4] - drawn[4:]) / (2 * STEP)  # [3, h·w]
        step = np.linalg.solve(slopes @ slopes.T + 1e-3 * np.eye(3), slopes @ error)
        at = at + np.clip(step, -1.5, 1.5)
        at[2] = max(at[2], 1)
    return best


def _patches(error: np.ndarray, k: int) -> np.ndarray:
    """Means over all k x k patches: [H, W] -> [H - k + 1, W - k + 1]."""
    sums = np.pad(error, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    return (sums[k:, k:] - sums[:-k, k:] - sums[k:, :-k] + sums[:-k, :-k]) / k**2


def _nearest(colour: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str:
    return min(palette, key=lambda name: np.linalg.norm(np.array(palette[name]) / 255 - colour))


# ---- pictures beside their captions


class PromptAccuracy(NamedTuple):
    correct: list[bool]  # per picture: all that its caption names is right and nothing else is there
    rates: dict[str, float]  # per attribute: the share among the captions that name it


def prompt_accuracy(images: Iterable[np.ndarray | Tensor], captions: Sequence[str]) -> PromptAccuracy:
    """How pictures, each as `read` takes it, follow their captions.

    Single rates come from the best reading even of pictures that are not clean; "all" and `correct` ask for clean ones.
    """
    verdicts = [verdict(image, parse(caption)) for image, caption in zip(images, captions, strict=True)]
    names = [name for name in VERDICTS if any(name in v for v in verdicts)]
    told = {name: [v[name] for v in verdicts if name in v] for name in names}
    return PromptAccuracy(told.get("all", []), {name: sum(right) / len(right) for name, right in told.items()})


VERDICTS = ("count", "colour", "kind", "size", "relation", "background", "clean", "all")


def verdict(image: np.ndarray | Tensor, wanted: SampleSpec) -> dict[str, bool]:
    """Which of the attributes that are wanted are right; colour, kind, size and relation need the right count."""
    picture = _picture(image)
    scene = look(picture)
    things = scene.things if scene else ()
    named = ["colour", "kind"] + ["size"] * any(t[0] for t in wanted.things) + ["relation"] * bool(wanted.relation)
    result = {"count": len(things) == len(wanted.things)} | dict.fromkeys(named, False)
    if result["count"]:
        best = max((_compare(order, wanted) for order in itertools.permutations(things)), key=_rank)
        result |= {name: best[name] for name in named}
    if wanted.background:
        result["background"] = scene is not None and scene.background == wanted.background
    result["clean"] = scene is not None and explains(scene, picture)
    return result | {"all": all(result.values())}


def _compare(things: tuple[Thing, ...], wanted: SampleSpec) -> dict[str, bool]:
    """The attributes of objects in the order in which they are wanted."""
    pairs = list(zip(things, wanted.things))
    return {
        "colour": all(thing.colour == colour for thing, (_, colour, _) in pairs),
        "kind": all(thing.kind == kind for thing, (_, _, kind) in pairs),
        "size": all(size in (None, thing.size) for thing, (size, _, _) in pairs),
        "relation": not wanted.relation or relation(*things[:2]) == wanted.relation,
    }


def _rank(verdicts: dict[str, bool]) -> tuple[bool, int]:
    """Orders in which every colour is right go first: objects are told apart by colour; then more right attributes."""
    return verdicts["colour"], sum(verdicts.values())


def wilson(k: int, n: int) -> tuple[float, float]:
    """95 % confidence interval of a proportion, k of n (Wilson 1927)."""
    z, p = 1.959964, k / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
