"""What a data format provides: settings for the recipe and a dataset.

A format is one file of this folder: a settings class derived from ImageDataConfig, whose `open` returns a class derived
from Dataset. Its settings class is listed once, in recipe.py. docs/extend.md adds one step by step.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from latentdiff import rng
from latentdiff.config import UserError
from latentdiff.data.image import CROPS, resize_and_crop

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class ImageDataConfig:
    """Where the images lie and how they are preprocessed."""

    path: str = "data"  # where the images lie
    size: int = 256  # height and width in pixels; images are resized to cover it and cropped
    width: int = 0  # width in pixels, if it differs from the height; 0: size
    crop: str = "center"  # center or random: which part of an image of another aspect ratio
    flip: bool = False  # flip half of the images horizontally; captions with "left" or "right" become wrong
    val_fraction: float = 0.02  # held out for validation by a hash of the name, if the data has no validation split
    max_bad_fraction: float = 0.05  # stop when more than this fraction of the images cannot be read

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the preprocessed images."""
        return self.size, self.width or self.size

    def open(self, split: str) -> "Dataset":
        """The dataset of a split: train, val or test."""
        raise NotImplementedError

    def check(self) -> None:
        """Refuse (UserError) preprocessing that is out of range."""
        if self.crop not in CROPS:
            raise UserError(f"data.crop is {self.crop!r}; it must be {' or '.join(CROPS)}")
        if not 1 <= self.size <= 2**14 or not 0 <= self.width <= 2**14:
            raise UserError(f"data.size={self.size} data.width={self.width}: use pixels, such as data.size=256")
        for name, below in (("val_fraction", True), ("max_bad_fraction", False)):
            value = getattr(self, name)
            if not 0 <= value <= 1 or value == 1 and below:
                raise UserError(f"data.{name} is {value}; it must be a fraction from 0 to {'below ' * below}1")


class Dataset:
    """One split of a data set. A format implements __len__, id, load_image and captions_of, and extends `record`.

    Every random choice is a function of the `key` of an item, so that a resumed run sees the same items.

    Attributes:
        label_names, category_names: names of the classes of labels and of boxes, if there are any.
        unreadable: (id or file, reason) of what cannot be used, as far as it is known without opening images.
        unlisted: ids of images that are not used because no metadata lists them.
        has_captions: whether items have a caption.
    """

    def __init__(self, config: ImageDataConfig, split: str) -> None:
        assert split in SPLITS, f"there is no split {split!r}"
        config.check()
        self.config, self.split = config, split
        self.label_names: list[str] = []
        self.category_names: list[str] = []
        self.unreadable: list[tuple[str, str]] = []
        self.unlisted: list[str] = []
        self.has_captions = False

    def __len__(self) -> int:
        raise NotImplementedError

    def id(self, i: int) -> str:
        """The name of item i, unique and independent of the other items."""
        raise NotImplementedError

    def load_image(self, i: int) -> Image.Image:
        """Image i as RGB; raises BadImage if it cannot be read."""
        raise NotImplementedError

    def captions_of(self, i: int) -> list[str]:
        """All captions of item i; none if it has none."""
        return []

    def record(self, i: int, key: int) -> dict[str, Any]:
        """The fields of item i without its image: id, caption (one of its captions) and what else there is."""
        return {"id": self.id(i)} | ({"caption": choose(self.captions_of(i), key)} if self.has_captions else {})

    def item(self, i: int, key: int) -> dict[str, Any]:
        """The record with image uint8 [H, W, 3] and view (its crop); `key` alone decides crop, flip and caption."""
        return self.record(i, key) | self.preprocess(self.load_image(i), key)

    def preprocess(self, image: Image.Image, key: int) -> dict[str, Any]:
        height, width = self.config.image_size
        pixels, view = resize_and_crop(image, height, width, self.config.crop, key, self.config.flip)
        return {"image": pixels, "view": view}

    def captions(self) -> list[str]:
        """The captions that a tokenizer is trained on; raises UserError if the data has none."""
        if not self.has_captions:
            raise UserError(f"data.path={self.config.path!r} has no captions")
        return [caption for i in range(len(self)) for caption in self.captions_of(i)]

    def fingerprint(self) -> str:
        """A hash of all that the pixels of the items depend on: it identifies their latent cache."""
        return self.hash_pixels(self.id(i) for i in range(len(self)))

    def hash_pixels(self, contents: Iterable[object]) -> str:
        """A hash of the preprocessing and of `contents`, which identify the images."""
        config = self.config
        digest = hashlib.blake2b(repr((*config.image_size, config.crop, config.flip)).encode())
        for content in contents:
            digest.update(repr(content).encode())
        return digest.hexdigest()[:32]


class Subset(Dataset):
    """The first n items of a dataset: --overfit trains on it."""

    def __init__(self, data: Any, n: int) -> None:
        self.data, self.n = data, min(n, len(data))
        self.label_names, self.category_names = (getattr(data, name, []) for name in ("label_names", "category_names"))
        self.unreadable, self.unlisted = [], []
        self.id, self.record, self.item, self.captions = data.id, data.record, data.item, data.captions

    def __len__(self) -> int:
        return self.n

    def fingerprint(self) -> str:
        return f"{self.n}-{self.data.fingerprint()}"  # caches are named by its beginning


def choose(captions: list[str], key: int) -> str:
    """One of the captions; "" if there are none: such an image trains the unconditional model."""
    return captions[rng.key(key, "caption") % len(captions)] if captions else ""


def held_out(names: list[Any], fraction: float) -> set[Any]:
    """The items of a validation split, by a hash of their name, so that an item keeps its side when others are added;
    at least one of two or more items."""
    marks = {name: rng.key("val", name) / 2**63 for name in names}
    lowest = min(marks.values(), default=1.0) if len(marks) > 1 and fraction else -1.0
    return {name for name, mark in marks.items() if mark < fraction or mark == lowest}
