"""The endless stream of batches: (seed, step, position) gives the item, so a restart goes on exactly."""

import atexit
import multiprocessing
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from latentdiff import rng
from latentdiff.config import UserError
from latentdiff.data.image import BadImage


def micro_batches(rank: int, size: int, batch_size: int, accumulate: int) -> list[range]:
    """The positions in the global batch that a rank computes, in `accumulate` pieces."""
    pieces = size * accumulate
    if batch_size % pieces:
        raise UserError(
            f"train.batch_size={batch_size} cannot be shared by {size} ranks x train.grad_accum_steps={accumulate}; "
            f"use a multiple of {pieces}"
        )
    piece = batch_size // pieces
    return [
        range(start, start + piece)
        for start in range(rank * accumulate * piece, (rank + 1) * accumulate * piece, piece)
    ]


class Stream(Dataset):
    """Sample (step, position) of the stream: an epoch is a keyed permutation of the items, evaluated by index."""

    def __init__(self, data: Any, seed: int, batch_size: int) -> None:
        self.data, self.seed, self.batch_size = data, seed, batch_size

    def index(self, step: int, position: int) -> int:
        epoch, place = divmod(step * self.batch_size + position, len(self.data))
        return rng.permute(place, len(self.data), rng.key(self.seed, "order", epoch))

    def __getitem__(self, where: tuple[int, int]) -> dict:
        """The item; one that cannot be read is replaced by f(seed, step, position, try) and named in "bad"."""
        step, position = where
        index, bad = self.index(step, position), []
        for attempt in range(100):
            try:
                item = self.data.item(index, rng.key(self.seed, step, position, "item"))
                return item | {"bad": bad}
            except BadImage as error:
                bad.append((self.data.id(index), str(error)))
                index = rng.key(self.seed, step, position, "replace", attempt) % len(self.data)
        raise UserError(f"100 items in a row cannot be read, the last one {bad[-1][0]}: {bad[-1][1]}")


class _Order:
    """The (step, position) pairs of each micro-batch, in order."""

    def __init__(self, first: int, steps: int, micro: list[range]) -> None:
        self.first, self.steps, self.micro = first, steps, micro

    def __len__(self) -> int:
        return (self.steps - self.first) * len(self.micro)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.first, self.steps):
            for positions in self.micro:
                yield [(step, position) for position in positions]


def batches(
    data: Any, seed: int, batch_size: int, micro: list[range], first: int, steps: int, workers: int = 0
) -> Iterator[dict]:
    """Batches from step `first` on: one per micro-batch, each a dict of stacked tensors and lists."""
    order = _Order(first, steps, micro)
    options = {"persistent_workers": True, "prefetch_factor": 4, "worker_init_fn": _deaf} if workers else {}
    try:
        yield from DataLoader(
            Stream(data, seed, batch_size), batch_sampler=order, collate_fn=collate, num_workers=workers, **options
        )
    except UserError as error:  # a worker's comes wrapped in its traceback
        raise UserError(str(error).rpartition("UserError: ")[2]) from None


def _deaf(worker: int) -> None:
    """Ctrl-C and Slurm tell all processes; the one that trains still needs its workers, and ends them itself."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def _end_workers() -> None:
    """Of a stream that is still open when Python ends: it would send SIGTERM and wait, for ever where they are deaf."""
    workers = [child for child in multiprocessing.active_children() if child.daemon]
    if workers:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch takes a killed worker for a fault
    for worker in workers:
        worker.kill()


def sequential_batches(data: Any, indices: range, batch_size: int) -> Iterator[dict]:
    """Every item once, in order, centre crops; items that cannot be read are left out (named in "bad")."""
    for start in range(indices.start, indices.stop, batch_size):
        items, bad = [], []
        for index in range(start, min(start + batch_size, indices.stop)):
            try:
                items.append(data.item(index, rng.key("in order", index)) | {"index": index})
            except BadImage as error:
                bad.append((data.id(index), str(error)))
        if items:
            yield collate([item | {"bad": []} for item in items]) | {"bad": bad}


def collate(items: list[dict]) -> dict:
    """Stack arrays and numbers, list the rest; fields that only some items have are left out."""
    batch: dict[str, Any] = {"bad": [entry for item in items for entry in item["bad"]]}
    for name in set.intersection(*(set(item) for item in items)) - {"bad"}:
        values = [item[name] for item in items]
        if isinstance(values[0], np.ndarray) and len({v.shape for v in values}) == 1:
            batch[name] = torch.from_numpy(np.stack(values))
        elif all(isinstance(v, (int, np.integer)) and not isinstance(v, bool) and abs(v) < 2**63 for v in values):
            batch[name] = torch.tensor(values, dtype=torch.int64)
        else:
            batch[name] = values
    return batch


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """x of the host on the device. A GPU fetches it from pinned memory, or the host would wait for the step before."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def images(batch: dict, device: torch.device | None = None) -> Tensor:
    """batch["image"] uint8 [B, H, W, 3] -> float [B, 3, H, W] in [-1, 1] on the device."""
    image = batch["image"] if device is None else to_device(batch["image"], device)
    return image.permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


class Subset:
    """The first n items of a data set: what --overfit trains on."""

    def __init__(self, data: Any, n: int) -> None:
        self.data, self.n = data, min(n, len(data))
        self.label_names, self.category_names = (getattr(data, name, []) for name in ("label_names", "category_names"))

    def __len__(self) -> int:
        return self.n

    def id(self, i: int) -> str:
        return self.data.id(i)

    def record(self, i: int, key: int) -> dict:
        return self.data.record(i, key)

    def item(self, i: int, key: int) -> dict:
        return self.data.item(i, key)

    def captions(self) -> list[str]:
        return self.data.captions()

    def fingerprint(self) -> str:
        return f"{self.n}-{self.data.fingerprint()}"  # caches are named by its beginning
