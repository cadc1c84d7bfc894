"""Fields of an item that conditions read beside its caption: boxes, semantic maps, low-resolution images and masks.

Boxes and maps come with the data and follow the crop and flip of the image. Low-resolution images and masks are
computed whenever an image is read, from random numbers keyed by (seed, step, position).
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from latentdiff.config import UserError
from latentdiff.data.degrade import DegradeConfig, degrade
from latentdiff.data.image import BadImage, CropParams
from latentdiff.data.masks import MasksConfig, random_mask

DERIVED = {  # settings -> the field, and how it is computed from the image
    DegradeConfig: ("low_res", degrade),
    MasksConfig: ("mask", lambda config, image, key: random_mask(config, *image.shape[:2], key)),
}
REQUIRED_METADATA = {  # field -> what the metadata of an image must contain
    "caption": "a text: x.txt beside x.jpg, or a column that data.caption names",
    "label": "label (a class for every image), or class sub-folders",
    "boxes": "objects: {bbox: [[x, y, width, height], ...], categories: [0, ...]}",
    "segmentation": "map_file_name: an image of class numbers",
}
MIN_VISIBLE = 0.2  # boxes of which the crop shows a smaller fraction are dropped


class ConditionFields:
    """A dataset (or its cached latents) with the fields that the conditions read in its items.

    reads: names of the fields; derivations: settings of those computed from the image; classes: field -> how many.
    """

    def __init__(self, data: Any, reads: Sequence[str], derivations: Sequence[Any], classes: dict[str, int]) -> None:
        self.data, self.reads, self.derivations, self.classes = data, tuple(reads), tuple(derivations), classes

    def __len__(self) -> int:
        return len(self.data)

    def id(self, i: int) -> str:
        return self.data.id(i)

    def item(self, i: int, key: int) -> dict:
        item = dict(self.data.item(i, key))
        for config in self.derivations:
            name, derive = DERIVED[type(config)]
            item[name] = derive(config, item["image"], key)
        if "boxes" in self.reads and "boxes" not in item and "objects" in item:
            item["boxes"] = crop_boxes(item["objects"], item["view"])
        if "segmentation" in self.reads and "segmentation" not in item and "map_file_name" in item:
            item["segmentation"] = crop_map(item["map_file_name"], item["view"])
        for name in self.reads:
            if name not in item:
                required = REQUIRED_METADATA.get(name)
                raise UserError(f"a condition reads {name}, which the data does not have; each image needs {required}")
        for name, count in self.classes.items():
            check_classes(name, item[name], count)
        keep = {"id", "index", "mean", "logvar", "image", "caption", *self.reads}
        return {name: value for name, value in item.items() if name in keep}


def needs_image(reads: Sequence[str], record: dict) -> bool:
    """Whether images must be read beside cached latents: whether some field is not in the record."""
    return bool(set(reads) - {"caption"} - record.keys())


def check_classes(name: str, value: Any, count: int) -> None:
    """BadImage if a label, box or map has a class outside of 0 to count - 1."""
    numbers = np.asarray(value)
    numbers = numbers[:, 4] if name == "boxes" else numbers
    if numbers.size and (numbers.max() >= count or numbers.min() < 0):
        worst = int(numbers.max() if numbers.max() >= count else numbers.min())
        raise BadImage(f"its {name} has class {worst}; the condition's classes={count} allows 0 to {count - 1}")


def crop_boxes(objects: dict, view: CropParams) -> np.ndarray:
    """COCO boxes in pixels of the file -> float32 [n, 5]: x0 y0 x1 y1 as fractions of the crop, and the class.

    Boxes are clipped to the crop, dropped if hardly visible, and sorted by visible area, the largest first.
    """
    try:
        corners = np.array(objects["bbox"], np.float64).reshape(-1, 4)  # x, y, width, height
        categories = np.array(objects["categories"], np.float64).reshape(-1, 1)
        table = np.concatenate([corners, categories], axis=1)
    except (KeyError, TypeError, ValueError) as error:
        raise BadImage(f"its objects cannot be read ({error}); they need {REQUIRED_METADATA['boxes']}") from None
    x, y, width, height = table[:, :4].T * view.scale
    x0, x1 = _clip(x - view.left, width, view.width, view.flip)
    y0, y1 = _clip(y - view.top, height, view.height, False)
    boxes = np.stack([x0, y0, x1, y1, table[:, 4]], axis=1)
    area = (x1 - x0) * view.width * (y1 - y0) * view.height
    visible = area > MIN_VISIBLE * np.maximum(width * height, 1e-9)
    return boxes[visible][np.argsort(-area[visible], kind="stable")].astype(np.float32)


def _clip(start: np.ndarray, length: np.ndarray, side: int, flip: bool) -> tuple[np.ndarray, np.ndarray]:
    """Start and end along one side, as fractions of it."""
    ends = np.clip(start / side, 0, 1), np.clip((start + length) / side, 0, 1)
    return (1 - ends[1], 1 - ends[0]) if flip else ends


def crop_map(path: str, view: CropParams) -> np.ndarray:
    """The crop of a map of class numbers that is as large as the image: uint8 or int32 [H, W]."""
    return np.asarray(view.apply(open_map(path), Image.Resampling.NEAREST))


def open_map(path: str | os.PathLike) -> Image.Image:
    """Open an image of class numbers: grayscale (8 or 16 bits), or palette indices. Raises BadImage."""
    try:
        with Image.open(path) as image:
            image.load()
            if image.mode == "1":
                return image.convert("L").point(lambda v: v // 255)
            if image.mode not in ("L", "P", "I", "I;16"):
                raise BadImage(f"map {path} is {image.mode}; it must be grayscale or have a palette: a class per pixel")
            return Image.fromarray(np.asarray(image).astype(np.int32 if "I" in image.mode else np.uint8))
    except OSError as error:
        raise BadImage(f"map {path} cannot be read: {error.strerror or 'it is not an image'}") from None


def stack_field(name: str, values: Tensor | Sequence[np.ndarray | Tensor]) -> Tensor:
    """Stack a field of several items; boxes [n, 5] -> [B, max n, 5], padded with class -1."""
    if isinstance(values, Tensor):
        return values
    if name != "boxes":
        return torch.stack([torch.as_tensor(value) for value in values])
    padded = torch.full((len(values), max([len(boxes) for boxes in values] + [1]), 5), -1.0)
    for row, boxes in zip(padded, values):
        row[: len(boxes)] = torch.as_tensor(boxes)
    return padded
