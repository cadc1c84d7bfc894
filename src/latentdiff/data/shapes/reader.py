"""A deterministic detector of rendered scenes: the objects in an image, and whether they match its caption."""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from latentdiff.data.shapes.captions import ParsedCaption, parse
from latentdiff.data.shapes.scene import (
    BACKGROUNDS,
    COLOURS,
    KINDS,
    SIZES,
    Scene,
    ShapeObject,
    coverage,
    draw,
    relation,
    window,
)

# squared errors below are sums over RGB in 0..1
MIN_PSNR = 20.0  # dB, of the image against the rendering of the detected scene
MAX_PATCH_ERROR = 0.07  # mean squared error in any patch of an eighth of the short side
MAX_BACKGROUND_ERROR = 0.015  # the same between the objects, against the measured background colour
MAX_OBJECT_ERROR = 0.2  # squared error in an object's window, as a fraction of what rendering the object changes there
BLUR_WIDTH = 0.15  # width of a blurred outline, as a fraction of the short side
MIN_CONTRAST = 0.22  # distance of an object's pixels from the background's colour
MIN_AREA = 0.01  # of an object, as a fraction of the squared short side
STEP = 0.5  # pixels, of finite differences; smaller ones vanish where an edge lies between two pixels
OFFSETS = STEP * np.concatenate([np.zeros((1, 3)), np.eye(3), -np.eye(3)])  # [7, 3], of x, y and radius
ATTRIBUTES = ("count", "colour", "kind", "size", "relation", "background", "clean", "all")


# ---- images -> scenes


def read_scene(image: np.ndarray | Tensor) -> Scene | None:
    """The scene in an image, uint8 [H, W, 3] or float [3, H, W] in [-1, 1]; None if it is not a clean rendering."""
    x = _to_unit_range(image)
    scene = detect(x)
    return scene if scene is not None and is_clean(scene, x) else None


def detect(x: np.ndarray) -> Scene | None:
    """The best fit to an image, float [H, W, 3] in 0..1, clean or not; None without one to three objects."""
    height, width, _ = x.shape
    background = _background_colour(x)
    regions = _connected_regions(np.linalg.norm(x - background, axis=2) > MIN_CONTRAST)
    regions = [region for region in regions if region.sum() > MIN_AREA * min(height, width) ** 2]
    if not 1 <= len(regions) <= 3:
        return None
    objects = tuple(_fit_object(x, background, region) for region in regions)
    return Scene(_nearest(background, BACKGROUNDS), objects)


def is_clean(scene: Scene, x: np.ndarray) -> bool:
    """Whether the rendering of the scene equals the image: as a whole, in every patch, and in each object's window.

    Objects to which a blurred outline fits better than the sharp one are not clean either.
    """
    height, width, _ = x.shape
    side, background = min(height, width), np.array(BACKGROUNDS[scene.background]) / 255
    sharp, blurred = (draw(scene, height, width, edge)[0] / 255 for edge in (1.0, BLUR_WIDTH * side))
    error, blurred_error, signal = map(_squared_norm, (sharp - x, blurred - x, sharp - background))  # [H, W] each
    outside = _squared_norm(x - _background_colour(x))
    for shape in scene.objects:
        top, bottom, left, right = window(shape, height, width)
        inside = np.s_[top:bottom, left:right]
        outside[inside] = 0
        if error[inside].sum() > min(blurred_error[inside].sum(), MAX_OBJECT_ERROR * signal[inside].sum()):
            return False
    patch_error, background_error = (_patch_means(e, side // 8).max() for e in (error, outside))
    psnr_reached = error.mean() / 3 <= 10 ** (-MIN_PSNR / 10)
    return psnr_reached and patch_error <= MAX_PATCH_ERROR and background_error <= MAX_BACKGROUND_ERROR


def _to_unit_range(image: np.ndarray | Tensor) -> np.ndarray:
    """uint8 [H, W, 3] or float [3, H, W] in [-1, 1] -> float64 [H, W, 3] in 0..1."""
    if isinstance(image, Tensor):
        image = image.detach().cpu().float().numpy() if image.is_floating_point() else image.cpu().numpy()
    if image.dtype == np.uint8:
        return image / 255.0
    return np.clip(image.transpose(1, 2, 0).astype(np.float64) / 2 + 0.5, 0, 1)


def _background_colour(x: np.ndarray) -> np.ndarray:
    """The median along the border, which no object touches."""
    return np.median(np.concatenate([x[0], x[-1], x[:, 0], x[:, -1]]), axis=0)


def _squared_norm(difference: np.ndarray) -> np.ndarray:
    return (difference**2).sum(axis=-1)  # [H, W, 3] -> [H, W]


def _connected_regions(mask: np.ndarray) -> list[np.ndarray]:
    """The 4-connected components of bool [H, W], each as bool [H, W]; the 8 largest at most."""
    labels = np.pad(np.arange(1, mask.size + 1).reshape(mask.shape) * mask, 1)
    inner = labels[1:-1, 1:-1]
    while True:  # the largest label spreads to neighbours until nothing changes
        spread = np.maximum.reduce([inner, labels[:-2, 1:-1], labels[2:, 1:-1], labels[1:-1, :-2], labels[1:-1, 2:]])
        spread *= mask
        if (spread == inner).all():
            break
        inner[:] = spread
    values, counts = np.unique(inner[mask], return_counts=True)
    return [inner == value for value in values[np.argsort(-counts, kind="stable")][:8]]


def _fit_object(x: np.ndarray, background: np.ndarray, region: np.ndarray) -> ShapeObject:
    """The object in a region: its colour from the pixels of most contrast, its kind by fitting each of the kinds."""
    rows, columns = np.nonzero(region)
    height, width = region.shape
    top, bottom = max(0, rows.min() - 1), min(height, rows.max() + 2)
    left, right = max(0, columns.min() - 1), min(width, columns.max() + 2)
    contrast = x[region] - background
    strength = np.linalg.norm(contrast, axis=1)
    colour = np.median(contrast[strength >= np.quantile(strength, 0.6)], axis=0)  # relative to the background
    alpha = (x[top:bottom, left:right] - background) @ colour / (colour @ colour)  # [h, w], 0 outside and 1 inside
    fits = [(*_fit_kind(kind, alpha, (top, bottom, left, right)), kind) for kind in KINDS]
    _, (center_x, center_y, radius), kind = min(fits, key=lambda fit: fit[0])
    size = "large" if radius > sum(SIZES.values()) / 2 * min(height, width) else "small"
    name = _nearest(background + colour, COLOURS)
    return ShapeObject(kind, name, size, float(center_x), float(center_y), float(radius))


def _fit_kind(kind: str, alpha: np.ndarray, pixels: tuple[int, int, int, int]) -> tuple[float, np.ndarray]:
    """Fit x, y and radius of a kind by Gauss-Newton; the squared error and the parameters of the best iteration."""
    top, bottom, left, right = pixels
    half_width, half_height = KINDS[kind][1]
    radius = (right - left - 2 + bottom - top - 2) / 2 / (half_width + half_height)
    params = np.array([(left + right) / 2, (top + bottom) / 2, radius])
    best = (math.inf, params)
    for _ in range(5):
        x, y, radius = (params + OFFSETS).T[:, :, None, None]
        rendered = coverage(kind, x, y, radius, pixels).reshape(7, -1)
        residual = alpha.ravel() - rendered[0]
        best = min(best, (float(residual @ residual), params), key=lambda fit: fit[0])
        jacobian = (rendered[1:4] - rendered[4:]) / (2 * STEP)  # [3, h·w]
        update = np.linalg.solve(jacobian @ jacobian.T + 1e-3 * np.eye(3), jacobian @ residual)
        params = params + np.clip(update, -1.5, 1.5)
        params[2] = max(params[2], 1)
    return best


def _patch_means(error: np.ndarray, k: int) -> np.ndarray:
    """Means over all k x k patches: [H, W] -> [H - k + 1, W - k + 1]."""
    sums = np.pad(error, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    return (sums[k:, k:] - sums[:-k, k:] - sums[k:, :-k] + sums[:-k, :-k]) / k**2


def _nearest(colour: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str:
    return min(palette, key=lambda name: np.linalg.norm(np.array(palette[name]) / 255 - colour))


# ---- images and captions


class PromptAccuracy(NamedTuple):
    correct: list[bool]  # per image: everything that its caption names is right, and it is clean
    by_attribute: dict[str, float]  # attribute -> fraction of correct images, of those whose caption names it


def prompt_accuracy(images: Iterable[np.ndarray | Tensor], captions: Sequence[str]) -> PromptAccuracy:
    """How well images (in the forms of read_scene) match their captions.

    Single attributes are taken from the best fit even if the image is not clean; "all" and `correct` require that.
    """
    results = [compare(image, parse(caption)) for image, caption in zip(images, captions, strict=True)]
    columns = {name: [result[name] for result in results if name in result] for name in ATTRIBUTES}
    fractions = {name: sum(column) / len(column) for name, column in columns.items() if column}
    return PromptAccuracy(columns["all"], fractions)


def compare(image: np.ndarray | Tensor, caption: ParsedCaption) -> dict[str, bool]:
    """Whether each attribute that the caption names is right; those of objects also require the right count."""
    x = _to_unit_range(image)
    scene = detect(x)
    objects = scene.objects if scene else ()
    names = ["colour", "kind"] + ["size"] * any(o[0] for o in caption.objects) + ["relation"] * bool(caption.relation)
    result = {"count": len(objects) == len(caption.objects)} | dict.fromkeys(names, False)
    if result["count"]:
        # objects are matched by colour first, then by the number of right attributes
        matches = [_compare_objects(order, caption) for order in itertools.permutations(objects)]
        best = max(matches, key=lambda match: (match["colour"], sum(match.values())))
        result |= {name: best[name] for name in names}
    if caption.background:
        result["background"] = scene is not None and scene.background == caption.background
    result["clean"] = scene is not None and is_clean(scene, x)
    return result | {"all": all(result.values())}


def _compare_objects(objects: tuple[ShapeObject, ...], caption: ParsedCaption) -> dict[str, bool]:
    """The attributes of objects in the order of the caption."""
    pairs = list(zip(objects, caption.objects))
    return {
        "colour": all(shape.colour == colour for shape, (_, colour, _) in pairs),
        "kind": all(shape.kind == kind for shape, (_, _, kind) in pairs),
        "size": all(size in (None, shape.size) for shape, (size, _, _) in pairs),
        "relation": not caption.relation or relation(*objects[:2]) == caption.relation,
    }


def wilson(k: int, n: int) -> tuple[float, float]:
    """95 % confidence interval of a proportion k / n (Wilson 1927)."""
    z, p = 1.959964, k / n
    center, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (center - half) / (1 + z * z / n), (center + half) / (1 + z * z / n)
