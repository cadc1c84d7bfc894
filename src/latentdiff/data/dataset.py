"""What a data format provides: settings for the recipe, and a dataset.

A format is one file of this folder: a settings class derived from ImageDataConfig, whose `open` returns a class derived
from Dataset. Its settings class is listed once, in recipe.py. docs/extend.md adds one step by step.
"""

import hashlib
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import Any, NamedTuple

from PIL import Image

from latentdiff import rng
from latentdiff.config import UserError
from latentdiff.data.image import CROPS, BadImage, open_image, resize_and_crop

SPLITS = ("train", "val", "test")
RESERVED = {  # fields that training adds to an item; metadata columns of these names are ignored
    "id", "image", "view", "key", "index", "bad", "tokens", "mean", "logvar", "label", "caption", "boxes", "low_res",
    "mask", "segmentation",
}  # fmt: skip


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
        if not 0 <= self.val_fraction < 1:
            raise UserError(f"data.val_fraction is {self.val_fraction}; it must be a fraction from 0 to below 1")
        if not 0 <= self.max_bad_fraction <= 1:
            raise UserError(f"data.max_bad_fraction is {self.max_bad_fraction}; it must be a fraction from 0 to 1")


class Metadata(NamedTuple):
    """What is known about an image without opening it."""

    captions: Sequence[str] = ()
    label: int | None = None  # class number
    columns: dict[str, Any] = {}  # further fields, for conditions


class Dataset:
    """One split of a data set. A format implements __len__, id, content (or load_image) and, if it has any, metadata.

    Every random choice is a function of the `key` of an item, so that a resumed run sees the same items.
    """

    label_names: Sequence[str] = ()  # of the classes of labels
    category_names: Sequence[str] = ()  # of the classes of boxes
    has_captions = False  # whether items have a caption
    max_captioned = sys.maxsize  # number of items whose captions train a tokenizer
    unreadable: Sequence[tuple[str, str]] = ()  # (id or file, reason) of what cannot be used; images are not opened yet
    unlisted: Sequence[str] = ()  # ids of images that are not used because no metadata lists them

    def __init__(self, config: ImageDataConfig, split: str) -> None:
        assert split in SPLITS, f"there is no split {split!r}"
        config.check()
        self.config, self.split = config, split

    def __len__(self) -> int:
        raise NotImplementedError

    def id(self, i: int) -> str:
        """The name of item i, unique and independent of the other items."""
        raise NotImplementedError

    def content(self, i: int) -> bytes:
        """The bytes of image file i; raises BadImage if they cannot be read."""
        raise NotImplementedError

    def metadata(self, i: int) -> Metadata:
        """Captions, label and further columns of item i."""
        return Metadata()

    def missing_caption_reason(self, i: int) -> str:
        """Why item i has no caption: "empty" or "missing"."""
        return "missing"

    def no_captions_reason(self) -> str:
        """Why no item has a caption, and what to do."""
        return "its format has none"

    def load_image(self, i: int) -> Image.Image:
        """Image i as RGB; raises BadImage if it cannot be read."""
        return open_image(BytesIO(self.content(i)))

    def record(self, i: int, key: int) -> dict[str, Any]:
        """The fields of item i without its image: id, label and caption, if there are any, and the columns."""
        return self.make_record(i, self.metadata(i), key)

    def make_record(self, i: int, metadata: Metadata, key: int) -> dict[str, Any]:
        record = {name: value for name, value in metadata.columns.items() if name not in RESERVED} | {"id": self.id(i)}
        if metadata.label is not None:
            record["label"] = metadata.label
        if self.has_captions:  # without one of its own: "", which trains the unconditional model
            captions = metadata.captions or [""]
            record["caption"] = captions[rng.key(key, "caption") % len(captions)]
        return record

    def item(self, i: int, key: int) -> dict[str, Any]:
        """The record with image uint8 [H, W, 3] and view (its crop); `key` alone decides crop, flip and caption."""
        fields = self.preprocess(self.load_image(i), key)
        return self.record(i, key) | fields

    def preprocess(self, image: Image.Image, key: int) -> dict[str, Any]:
        height, width = self.config.image_size
        pixels, view = resize_and_crop(image, height, width, self.config.crop, key, self.config.flip)
        return {"image": pixels, "view": view}

    def captions_of(self, i: int) -> list[str]:
        """All captions of item i."""
        return list(self.metadata(i).captions)

    def captions(self) -> list[str]:
        """The captions that a tokenizer is trained on; raises UserError if the data has none."""
        if not self.has_captions:
            raise UserError(f"data.path={self.config.path!r} has no captions: {self.no_captions_reason()}")
        indices = range(0, len(self), max(1, -(-len(self) // self.max_captioned)))  # evenly spaced
        with ThreadPoolExecutor(8) as pool:  # their files are small, and may lie on a network file system
            return [caption for captions in pool.map(self._captions_if_readable, indices) for caption in captions]

    def _captions_if_readable(self, i: int) -> list[str]:
        try:
            return self.captions_of(i)
        except BadImage:
            return []

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

    def __init__(self, data: Dataset, n: int) -> None:
        self.data, self.n = data, min(n, len(data))
        self.label_names, self.category_names = data.label_names, data.category_names
        self.has_captions = data.has_captions
        self.id, self.record, self.item, self.captions = data.id, data.record, data.item, data.captions

    def __len__(self) -> int:
        return self.n

    def fingerprint(self) -> str:
        return f"{self.n}-{self.data.fingerprint()}"  # caches are named by its beginning


def divide(names: Sequence[Any], fraction: float, split: str) -> list[Any]:
    """The items of a split, for data that is not divided into files of train, val and test; test has none.

    By a hash of the names: an item stays in its split when others are added. val has at least one of two or more items.
    """
    if split == "test":
        return []
    marks = {name: rng.key("val", name) / 2**63 for name in names}
    lowest = min(marks.values(), default=1.0) if len(marks) > 1 and fraction else -1.0
    return [name for name, mark in marks.items() if (mark < fraction or mark == lowest) == (split == "val")]
