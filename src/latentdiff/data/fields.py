"""What conditions read of a picture beside its caption: boxes, maps, small copies and holes.

Boxes and maps come with the data and follow its crop and flip. Small copies and holes are made from the picture, anew
whenever it is read, from the sample's own key, so they are functions of (seed, step, position) like all that is random.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from latentdiff.config import UserError
from latentdiff.data.degrade import DegradeConfig, degrade
from latentdiff.data.image import BadImage, CropParams
from latentdiff.data.masks import MasksConfig, random_mask

MADE: dict[type, Callable[[Any, np.ndarray, int], dict]] = {  # what is made from the picture
    DegradeConfig: lambda config, image, key: {"low_res": degrade(config, image, key)},
    MasksConfig: lambda config, image, key: {"mask": random_mask(config, *image.shape[:2], key)},
}
BESIDE = {  # field -> what a picture's row in the metadata must name, and an example
    "caption": "a text: x.txt beside x.jpg, or a column that data.caption names",
    "label": "label (a class for every picture), or class sub-folders",
    "boxes": "objects: {bbox: [[x, y, width, height], ...], categories: [0, ...]}",
    "segmentation": "map_file_name: an image of class numbers",
}
LEAST = 0.2  # share of a box that a crop must show


class ConditionFields:
    """A data set whose items have `wanted`; classes: field -> how many classes its condition knows."""

    def __init__(
        self, data: Any, wanted: Sequence[str], makers: Sequence[DegradeConfig | MasksConfig], classes: dict[str, int]
    ):
        self.data, self.wanted, self.makers, self.classes = data, tuple(wanted), tuple(makers), classes

    def __len__(self) -> int:
        return len(self.data)

    def id(self, i: int) -> str:
        return self.data.id(i)

    def item(self, i: int, key: int) -> dict:
        item = dict(self.data.item(i, key))
        for maker in self.makers:
            item |= MADE[type(maker)](maker, item["image"], key)
        if "boxes" in self.wanted and "boxes" not in item and "objects" in item:
            item["boxes"] = follow_boxes(item["objects"], item["view"])
        if "segmentation" in self.wanted and "segmentation" not in item and "map_file_name" in item:
            item["segmentation"] = follow_map(item["map_file_name"], item["view"])
        for name in self.wanted:
            if name not in item:
                raise UserError(f"a condition reads {name}, but the data has none; a picture needs {BESIDE.get(name)}")
        for name, count in self.classes.items():
            check_classes(name, item[name], count)
        keep = {"id", "index", "mean", "logvar", "image", "caption", *self.wanted}
        return {name: value for name, value in item.items() if name in keep}


def needs_image(wanted: Sequence[str], record: dict) -> bool:
    """Whether a latent from the cache must be joined by its picture: some field is not in the record alone."""
    return bool(set(wanted) - {"caption"} - record.keys())


def check_classes(name: str, value: Any, count: int) -> None:
    """BadImage when a label, a box or a map has a class that the condition does not know."""
    kinds = np.asarray(value)
    kinds = kinds[:, 4] if name == "boxes" else kinds
    if kinds.size and (kinds.max() >= count or kinds.min() < 0):
        worst = int(kinds.max() if kinds.max() >= count else kinds.min())
        raise BadImage(f"its {name} has class {worst}; the condition's classes={count} allows 0 to {count - 1}")


def follow_boxes(objects: dict, view: CropParams) -> np.ndarray:
    """COCO's boxes in pixels of the file -> float32 [n, 5]: x0 y0 x1 y1 in shares of the crop, and the class.

    A box is cut at the crop's edge, and left out where hardly any of it is to be seen. The largest come first.
    """
    try:
        corners = np.array(objects["bbox"], np.float64).reshape(-1, 4)  # x, y, width, height
        kinds = np.array(objects["categories"], np.float64).reshape(-1, 1)
        joined = np.concatenate([corners, kinds], axis=1)
    except (KeyError, TypeError, ValueError) as error:
        raise BadImage(f"its objects cannot be read ({error}); they need {BESIDE['boxes']}") from None
    x, y, width, height = joined[:, :4].T * view.scale
    x0, x1 = _cut(x - view.left, width, view.width, view.flip)
    y0, y1 = _cut(y - view.top, height, view.height, False)
    boxes = np.stack([x0, y0, x1, y1, joined[:, 4]], axis=1)
    seen = (x1 - x0) * view.width * (y1 - y0) * view.height
    kept = seen > LEAST * np.maximum(width * height, 1e-9)
    return boxes[kept][np.argsort(-seen[kept], kind="stable")].astype(np.float32)


def _cut(start: np.ndarray, length: np.ndarray, side: int, flip: bool) -> tuple[np.ndarray, np.ndarray]:
    """From and to along one side, in shares of it."""
    ends = np.clip(start / side, 0, 1), np.clip((start + length) / side, 0, 1)
    return (1 - ends[1], 1 - ends[0]) if flip else ends


def follow_map(path: str, view: CropParams) -> np.ndarray:
    """A map of class numbers, an image as large as the picture's file -> uint8 or int32 [H, W] of the crop."""
    return np.asarray(view.cut(open_map(path), Image.Resampling.NEAREST))


def open_map(path: str | os.PathLike) -> Image.Image:
    """An image whose pixels are class numbers: gray (8 or 16 bits) or with a palette, whose numbers count."""
    try:
        with Image.open(path) as image:
            image.load()
            if image.mode == "1":
                return image.convert("L").point(lambda v: v // 255)
            if image.mode not in ("L", "P", "I", "I;16"):
                raise BadImage(f"map {path} is {image.mode}; it must be gray or have a palette: a number per pixel")
            return Image.fromarray(np.asarray(image).astype(np.int32 if "I" in image.mode else np.uint8))
    except OSError as error:
        raise BadImage(f"map {path} cannot be read: {error.strerror or 'is no picture'}") from None


def stack_field(name: str, values: Tensor | Sequence[np.ndarray | Tensor]) -> Tensor:
    """A field of several pictures as one tensor; boxes [n, 5] -> [B, most n, 5], filled up with class -1."""
    if isinstance(values, Tensor):
        return values
    if name != "boxes":
        return torch.stack([torch.as_tensor(value) for value in values])
    padded = torch.full((len(values), max([len(some) for some in values] + [1]), 5), -1.0)
    for row, some in zip(padded, values):
        row[: len(some)] = torch.as_tensor(some)
    return padded
