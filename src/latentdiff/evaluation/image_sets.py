"""Sets of images and their features, computed on all ranks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from latentdiff.config import UserError
from latentdiff.data import loader
from latentdiff.data.folder import FolderConfig, FolderDataset
from latentdiff.evaluation.features import Extractor
from latentdiff.training.distributed import World

BATCH_SIZE = 100


class Features(NamedTuple):
    features: Tensor  # [N, D]
    logits: Tensor | None  # [N, K]


class ImageDir:
    """The images 00000.png, 00001.png, ... of a folder, as a dataset."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count

    def __len__(self) -> int:
        return self.count

    def id(self, i: int) -> str:
        return f"{i:05d}.png"

    def item(self, i: int, key: int) -> dict:
        with Image.open(self.folder / self.id(i)) as image:
            return {"image": np.asarray(image.convert("RGB"))}


def open_folder(path: str, height: int, width: int) -> FolderDataset:
    """A folder of images, each resized to cover height x width and center-cropped, as in training."""
    data = FolderDataset(FolderConfig(path=path, size=height, width=width, val_fraction=0.0), "train")
    if len(data) < 2:
        raise UserError(f"{path} has {len(data)} image(s); sets of at least 2 images can be compared")
    return data


def size_of_first(path: str) -> tuple[int, int]:
    """Height and width of the first image of a folder."""
    data = FolderDataset(FolderConfig(path=path, size=8, val_fraction=0.0), "train")
    with Image.open(data.file(0)) as image:
        return image.height, image.width


def extract(extractor: Extractor, data: Any, count: int, world: World, transform: Callable | None = None) -> Features:
    """Features of the first `count` images of a dataset, or of transform(images).

    Pixel values are rounded to 8 bits, so that generated and stored images are treated equally.
    """
    widths: list[tuple[int, int]] = []

    def features_of(batch: dict) -> Tensor:
        x = loader.images(batch, world.device)
        x = x if transform is None else transform(x)
        x = ((x.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
        features, logits = extractor.network(x)
        widths.append((features.shape[1], 0 if logits is None else logits.shape[1]))
        return features if logits is None else torch.cat([features, logits], 1)

    values = map_batches(data, count, world, features_of)
    dim, classes = widths[0]
    return Features(values[:, :dim], values[:, dim:] if classes else None)


@torch.no_grad()
def map_batches(
    data: Any, count: int, world: World, function: Callable[[dict], Tensor], batch_size: int = BATCH_SIZE
) -> Tensor:
    """function(batch) [B, K] of the first `count` items in order: [N, K] on the CPU, the same on all ranks.

    Unreadable items are omitted.
    """
    values = {}
    for batch in loader.sequential_batches(data, world.shard(count), batch_size):
        values |= zip(batch["index"].tolist(), function(batch).float())
    if world.all_reduce_max(int(not values)):  # each rank needs an item to know K
        raise UserError(f"{count} readable image(s) are too few to compare, or fewer than the {world.size} ranks")
    width = len(next(iter(values.values())))
    table = torch.zeros(count, width + 1, device=world.device)  # the last column: 1 if the item was read
    for i, value in values.items():
        table[i, :-1], table[i, -1] = value, 1
    table = world.all_reduce_sum(table).cpu()
    return table[table[:, -1] > 0, :-1]


def mean_metrics(
    data: Any, count: int, world: World, metrics: Callable[[dict], dict[str, Tensor]], batch_size: int = BATCH_SIZE
) -> dict[str, float]:
    """The means of metrics(batch), name -> [B], over the first `count` items; the same on all ranks."""
    names: list[str] = []

    def stacked(batch: dict) -> Tensor:
        values = metrics(batch)
        names[:] = values
        return torch.stack(list(values.values()), 1)  # [B, metrics]

    means = map_batches(data, count, world, stacked, batch_size).double().mean(0).tolist()
    return dict(zip(names, means))
