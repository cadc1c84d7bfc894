"""Sets of pictures as features, shared by the ranks: data sets, folders, and what a network makes of them."""

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

BATCH = 100


class Features(NamedTuple):
    features: Tensor  # [N, D]
    logits: Tensor | None  # [N, K]


class ImageDir:
    """The pictures 00000.png, 00001.png, ... of a folder, as a data set."""

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
    """Any folder of pictures, each resized to cover height x width and cropped in the middle, as in training."""
    data = FolderDataset(FolderConfig(path=path, size=height, width=width, val_fraction=0.0), "train")
    if len(data) < 2:
        raise UserError(f"{path} holds {len(data)} picture(s); sets of pictures are compared, so it needs more")
    return data


def size_of_first(path: str) -> tuple[int, int]:
    """Height and width of a folder's first picture."""
    image = FolderDataset(FolderConfig(path=path, size=8, val_fraction=0.0), "train")
    with Image.open(image.file(0)) as first:
        return first.height, first.width


def extract(extractor: Extractor, data: Any, count: int, world: World, change: Callable | None = None) -> Features:
    """Features of the first `count` pictures of a data set, or of what `change` makes of them; each rank sees a part.

    Pictures are rounded to the 256 levels of a file, so that drawn and stored ones are treated alike.
    """

    def look(batch: dict) -> Tensor:
        x = loader.images(batch, world.device)
        x = x if change is None else change(x)
        x = ((x.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
        features, logits = extractor.network(x)
        widths.append((features.shape[1], 0 if logits is None else logits.shape[1]))
        return features if logits is None else torch.cat([features, logits], 1)

    widths: list[tuple[int, int]] = []
    rows = over(data, count, world, look)
    dim, classes = widths[0]
    return Features(rows[:, :dim], rows[:, dim:] if classes else None)


@torch.no_grad()
def over(data: Any, count: int, world: World, look: Callable[[dict], Tensor], batch_size: int = BATCH) -> Tensor:
    """look(batch) [B, K] for the first `count` items, in their order, [N, K] on the CPU, the same on all ranks.

    Items that cannot be read are left out.
    """
    found = {}
    for batch in loader.sequential_batches(data, world.shard(count), batch_size):
        found |= zip(batch["index"].tolist(), look(batch).float())
    # every rank needs a picture to know how wide a row is
    if world.all_reduce_max(int(not found)):
        raise UserError(f"{count} picture(s) that can be read are too few to compare, or fewer than {world.size} ranks")
    width = len(next(iter(found.values())))
    table = torch.zeros(count, width + 1, device=world.device)  # the last column: whether it was read
    for i, row in found.items():
        table[i, :-1], table[i, -1] = row, 1
    table = world.all_reduce_sum(table).cpu()
    return table[table[:, -1] > 0, :-1]
