"""The stream of training batches: (seed, step, position) determines the item, so a resumed run continues exactly."""

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
from latentdiff.layers import images_to_float


def micro_batches(rank: int, world_size: int, batch_size: int, grad_accum_steps: int) -> list[range]:
    """The positions in the global batch that a rank computes, one range per gradient accumulation step."""
    count = world_size * grad_accum_steps
    if batch_size % count:
        raise UserError(
            f"train.batch_size is {batch_size}; with {world_size} processes and "
            f"train.grad_accum_steps={grad_accum_steps} it must be a multiple of {count}"
        )
    size = batch_size // count
    first = rank * grad_accum_steps * size
    return [range(first + i * size, first + (i + 1) * size) for i in range(grad_accum_steps)]


class Stream(Dataset):
    """Item (step, position) of the stream; an epoch is a keyed permutation of the items, evaluated by index."""

    def __init__(self, data: Any, seed: int, batch_size: int) -> None:
        self.data, self.seed, self.batch_size = data, seed, batch_size

    def index(self, step: int, position: int) -> int:
        epoch, position = divmod(step * self.batch_size + position, len(self.data))
        return rng.permute(position, len(self.data), rng.key(self.seed, "order", epoch))

    def __getitem__(self, step_position: tuple[int, int]) -> dict:
        """The item; an unreadable one is listed in "bad" and replaced by f(seed, step, position, attempt)."""
        step, position = step_position
        index, bad = self.index(step, position), []
        for attempt in range(100):
            try:
                item = self.data.item(index, rng.key(self.seed, step, position, "item"))
                return item | {"bad": bad}
            except BadImage as error:
                bad.append((self.data.id(index), str(error)))
                index = rng.key(self.seed, step, position, "replace", attempt) % len(self.data)
        raise UserError(f"100 items in a row cannot be read, the last one {bad[-1][0]}: {bad[-1][1]}")


def batches(
    data: Any, seed: int, batch_size: int, micro_batches: list[range], start: int, steps: int, num_workers: int = 0
) -> Iterator[dict]:
    """The micro-batches from step `start` on, each a dict of stacked tensors and lists."""
    order = ([(step, i) for i in positions] for step in range(start, steps) for positions in micro_batches)
    options = {"persistent_workers": True, "prefetch_factor": 4, "worker_init_fn": _ignore_signals}
    try:
        yield from DataLoader(
            Stream(data, seed, batch_size),
            batch_sampler=order,
            collate_fn=collate,
            num_workers=num_workers,
            **(options if num_workers else {}),
        )
    except UserError as error:  # of a worker, with its traceback
        raise UserError(str(error).rpartition("UserError: ")[2]) from None


def _ignore_signals(worker: int) -> None:
    """Ctrl-C and Slurm signal all processes, but the training process needs its workers until it stops them."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def _end_workers() -> None:
    """Kill the workers of an open stream when Python exits: torch would wait forever, since they ignore SIGTERM."""
    workers = [child for child in multiprocessing.active_children() if child.daemon]
    if workers:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch reports a killed worker as an error
    for worker in workers:
        worker.kill()


def sequential_batches(data: Any, indices: range, batch_size: int) -> Iterator[dict]:
    """Every item once, in order, with center crops; unreadable items are omitted, and listed in "bad"."""
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
    """Stack arrays and numbers, list the rest; fields that are missing in some items are omitted."""
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
    """Copy x to the device; from pinned memory to a GPU, which avoids a host-device sync."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def images(batch: dict, device: torch.device | None = None) -> Tensor:
    """batch["image"] uint8 [B, H, W, 3] -> float [B, 3, H, W] in [-1, 1] on the device."""
    return images_to_float(batch["image"] if device is None else to_device(batch["image"], device))
