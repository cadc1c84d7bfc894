"""The data sets of torchvision by name: CIFAR10, Flowers102, Food101 ..."""

import contextlib
import difflib
import hashlib
import inspect
import operator
import os
from dataclasses import dataclass
from typing import Any

from PIL import Image

from latentdiff import rng
from latentdiff.config import UserError
from latentdiff.data.folder import check_preprocessing, choose
from latentdiff.data.image import BadImage, resize_and_crop, reason, to_rgb
from latentdiff.data.listing import texts

SPELLINGS = {"train": ("train", "train-standard"), "val": ("val", "valid"), "test": ("test",)}
TARGETS = ("targets", "labels", "_labels", "y")  # where its classes keep their numbers


@dataclass(frozen=True)
class TorchvisionConfig:
    name: str = "CIFAR10"  # of a class in torchvision.datasets
    path: str = "data"  # its root
    download: bool = False  # fetch it when it is not there; do this once, with one process
    size: int = 32  # height and width in pixels that pictures are resized to cover and cropped to
    width: int = 0  # width, where it is not as the height (0: as size)
    crop: str = "center"  # center | random: which part of a picture that has another shape
    flip: bool = False  # mirror half of the views
    val_fraction: float = 0.02  # held out for validation by a hash of the number, where the set has no val
    max_bad_fraction: float = 0.05  # stop when more than this share of the pictures cannot be read

    @property
    def image_size(self) -> tuple[int, int]:
        return self.size, self.width or self.size

    def open(self, split: str):
        return TorchvisionDataset(self, split)


class TorchvisionDataset:
    """One split. A whole number beside a picture is its label, and words are captions; else its class's name is one.

    .label_names  the classes     .bad, .orphans  none     .has_captions
    """

    def __init__(self, config: TorchvisionConfig, split: str):
        check_preprocessing(config)
        assert split in ("train", "val", "test"), f"there is no split {split!r}"
        self.config, self.split, self.bad, self.orphans = config, split, [], []
        self.height, self.width = config.size, config.width or config.size
        val = None if split == "test" else _open(config, "val")  # none: train is parted
        self.part = "train" if split == "val" and val is None else split
        self.data = val if self.part == "val" else _open(config, self.part)
        if self.data is None:
            raise UserError(f"data.name={config.name!r} has no split to {split} on")
        self.rows = range(len(self.data))
        if self.part == "train" and val is None:
            self.rows = _held_out(len(self.data), config.val_fraction, split == "val")
        self.label_names = [_name(name) for name in getattr(self.data, "classes", None) or ()]
        self.targets = next((t for t in (getattr(self.data, name, None) for name in TARGETS) if t is not None), None)
        self.has_captions = len(self) > 0 and "caption" in self._record(0, self._target(0), 0)

    def __len__(self) -> int:
        return len(self.rows)

    def id(self, i: int) -> str:
        return f"{self.config.name}-{self.part}-{self.rows[i]:06d}"

    def record(self, i: int, key: int) -> dict:
        """id, label (int) and caption, where there are any; `key` alone chooses among captions."""
        return self._record(i, self._target(i), key)

    def item(self, i: int, key: int) -> dict:
        """The record, image uint8 [H, W, 3] and view (which part it shows); `key` alone decides crop and flip."""
        image, target = self._pair(i)
        image, view = resize_and_crop(image, self.height, self.width, self.config.crop, key, self.config.flip)
        return self._record(i, target, key) | {"image": image, "view": view}

    def captions(self) -> list[str]:
        """Every caption of the split; of classes, their names."""
        if not self.has_captions:
            raise UserError(
                f"data.name={self.config.name!r} has no captions: its pictures have neither words nor classes"
            )
        if self.label_names:
            return list(self.label_names)
        return [text for i in range(len(self)) for text in _words(self._target(i))]

    def fingerprint(self) -> str:
        """Hex hash of what the pixels depend on: the set, the first pictures, and the preprocessing."""
        about = (self.config.name, self.height, self.width, self.config.crop, self.config.flip)
        digest = hashlib.blake2b(repr((*about, self.split, len(self))).encode())
        for i in range(min(8, len(self))):
            digest.update(repr(self.id(i)).encode() + self._pair(i)[0].tobytes())
        return digest.hexdigest()[:32]

    def _pair(self, i: int) -> tuple[Image.Image, Any]:
        try:
            picture, target = self.data[self.rows[i]]
            return to_rgb(picture), target
        except Exception as error:  # files of any kind, read by code of any kind
            raise BadImage(reason(error)) from None

    def _target(self, i: int) -> Any:
        return self._pair(i)[1] if self.targets is None else self.targets[self.rows[i]]

    def _record(self, i: int, target: Any, key: int) -> dict:
        record, choices = {"id": self.id(i)}, _words(target)
        with contextlib.suppress(TypeError, ValueError):
            record["label"] = operator.index(target)  # a whole number of Python, numpy or torch
        if 0 <= record.get("label", -1) < len(self.label_names):
            choices = [self.label_names[record["label"]]]
        return record | ({"caption": choose(choices, key)} if choices else {})


def _open(config: TorchvisionConfig, split: str) -> Any:
    """The set itself; None where it has no such split."""
    from torchvision import datasets

    kind = getattr(datasets, config.name, None) if config.name in datasets.__all__ else None
    if not inspect.isclass(kind) or kind is datasets.VisionDataset:
        close = difflib.get_close_matches(config.name, datasets.__all__, 3)
        raise UserError(
            f"data.name={config.name!r} is no data set of torchvision; close to it: {', '.join(close) or '-'}"
        )
    has = inspect.signature(kind).parameters
    if config.download and os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError("data.download=true with several ranks; fetch it once with one process, then start without it")
    words = {"root": config.path, "download": config.download}
    words = {name: value for name, value in words.items() if name in has}
    chooser = next((name for name in ("train", "split", "image_set") if name in has), None)
    spellings = {"train": [split == "train"] if split != "val" else [], None: [None] if split == "train" else []}
    for spelling in spellings.get(chooser, SPELLINGS[split]):
        try:
            return kind(**words, **({chooser: spelling} if chooser else {}))
        except ValueError as error:
            if "Unknown value" not in str(error):
                raise UserError(f"data.name={config.name!r}: {error}") from None
        except Exception as error:  # not there, cannot be fetched, needs another package
            raise UserError(f"data.name={config.name!r}, data.path={config.path!r}: {_advice(error)}") from None
    return None


def _advice(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return text.replace("download=True", "data.download=true") or type(error).__name__


def _held_out(count: int, share: float, held: bool) -> list[int]:
    """The numbers of the pictures that are held out, or of the others; of more than one picture, at least one is."""
    marks = [rng.key("val", i) for i in range(count)]
    cut = max(int(share * 2**63), min(marks) + 1) if share and count > 1 else 0
    return [i for i, mark in enumerate(marks) if (mark < cut) == held]


def _words(target: Any) -> list[str]:
    """The captions that a set gives: words, or a list of them."""
    values = target if isinstance(target, (list, tuple)) else [target]
    return texts([value for value in values if isinstance(value, str)])


def _name(name: Any) -> str:
    """Some sets have several names for a class."""
    return str(name[0] if isinstance(name, tuple) else name).replace("_", " ").replace("-", " ")
