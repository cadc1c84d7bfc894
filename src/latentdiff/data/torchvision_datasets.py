"""The datasets of torchvision by name: CIFAR10, Flowers102, Food101 ..."""

import difflib
import inspect
import operator
import os
from dataclasses import dataclass
from typing import Any

from PIL import Image

from latentdiff.config import UserError
from latentdiff.data.dataset import Dataset, ImageDataConfig, Metadata, divide
from latentdiff.data.image import BadImage, reason, to_rgb
from latentdiff.data.listing import caption_list

SPELLINGS = {"train": ("train", "train-standard"), "val": ("val", "valid"), "test": ("test",)}
TARGETS = ("targets", "labels", "_labels", "y")  # attributes in which torchvision's classes store the labels


@dataclass(frozen=True)
class TorchvisionConfig(ImageDataConfig):
    path: str = "data"  # root folder of the dataset
    name: str = "CIFAR10"  # of a class in torchvision.datasets
    download: bool = False  # download a missing dataset; do this once, with one process
    size: int = 32  # height and width in pixels; images are resized to cover it and cropped

    def open(self, split: str) -> "TorchvisionDataset":
        return TorchvisionDataset(self, split)


class TorchvisionDataset(Dataset):
    """One split. An integer target is a label, strings are captions; else the name of the class is the caption."""

    def __init__(self, config: TorchvisionConfig, split: str) -> None:
        super().__init__(config, split)
        val = None if split == "test" else _open(config, "val")  # None: train is divided
        self.part = "train" if split == "val" and val is None else split
        self.data = val if self.part == "val" else _open(config, self.part)
        if self.data is None:
            raise UserError(f"data.name={config.name!r} has no split to {split} on")
        self.indices = range(len(self.data))
        if self.part == "train" and val is None:
            self.indices = divide(self.indices, config.val_fraction, split)
        self.label_names = [_class_name(name) for name in getattr(self.data, "classes", None) or ()]
        self.targets = next((t for t in (getattr(self.data, name, None) for name in TARGETS) if t is not None), None)
        self.has_captions = len(self) > 0 and bool(self.metadata(0).captions)

    def __len__(self) -> int:
        return len(self.indices)

    def id(self, i: int) -> str:
        return f"{self.config.name}-{self.part}-{self.indices[i]:06d}"

    def load_image(self, i: int) -> Image.Image:
        return self._pair(i)[0]

    def metadata(self, i: int) -> Metadata:
        return self._metadata(self._pair(i)[1] if self.targets is None else self.targets[self.indices[i]])

    def item(self, i: int, key: int) -> dict:
        image, target = self._pair(i)  # read once for both
        return self.make_record(i, self._metadata(target), key) | self.preprocess(image, key)

    def captions(self) -> list[str]:
        """All captions of the split, or the names of the classes."""
        return list(self.label_names) if self.has_captions and self.label_names else super().captions()

    def no_captions_reason(self) -> str:
        return f"images of {self.config.name} have neither text nor classes"

    def fingerprint(self) -> str:
        """A hash of the name, of the first images and of the preprocessing."""
        first = ((self.id(i), self._pair(i)[0].tobytes()) for i in range(min(8, len(self))))
        return self.hash_pixels([self.config.name, self.split, len(self), *first])

    def _pair(self, i: int) -> tuple[Image.Image, Any]:
        try:
            image, target = self.data[self.indices[i]]
            return to_rgb(image), target
        except Exception as error:  # of any dataset's code
            raise BadImage(reason(error)) from None

    def _metadata(self, target: Any) -> Metadata:
        try:
            label = operator.index(target)  # an integer of Python, numpy or torch
        except (TypeError, ValueError):
            values = target if isinstance(target, (list, tuple)) else [target]
            return Metadata(caption_list([value for value in values if isinstance(value, str)]))
        return Metadata(self.label_names[label : label + 1] if label >= 0 else [], label)


def _open(config: TorchvisionConfig, split: str) -> Any:
    """The dataset of torchvision; None if it has no such split."""
    from torchvision import datasets

    kind = getattr(datasets, config.name, None) if config.name in datasets.__all__ else None
    if not inspect.isclass(kind) or kind is datasets.VisionDataset:
        close = difflib.get_close_matches(config.name, datasets.__all__, 3)
        raise UserError(
            f"data.name={config.name!r} is not a dataset of torchvision; similar names: {', '.join(close) or '-'}"
        )
    parameters = inspect.signature(kind).parameters
    if config.download and os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError("data.download is true with several processes; download with one process, then set it to false")
    options = {"root": config.path, "download": config.download}
    options = {name: value for name, value in options.items() if name in parameters}
    chooser = next((name for name in ("train", "split", "image_set") if name in parameters), None)
    spellings = {"train": [split == "train"] if split != "val" else [], None: [None] if split == "train" else []}
    for spelling in spellings.get(chooser, SPELLINGS[split]):
        try:
            return kind(**options, **({chooser: spelling} if chooser else {}))
        except ValueError as error:
            if "Unknown value" not in str(error):
                raise UserError(f"data.name={config.name!r}: {error}") from None
        except Exception as error:  # missing, cannot be downloaded, or needs another package
            raise UserError(f"data.name={config.name!r}, data.path={config.path!r}: {_message(error)}") from None
    return None


def _message(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return text.replace("download=True", "data.download=true") or type(error).__name__


def _class_name(name: Any) -> str:
    """Some datasets have several names for a class."""
    return str(name[0] if isinstance(name, tuple) else name).replace("_", " ").replace("-", " ")
