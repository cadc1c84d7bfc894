"""The latent cache: moments of every picture, encoded once, memory-mapped, and bound to what made them.

A folder of safetensors shards (mean and log-variance before normalisation, so the posterior is sampled anew at every
step) and a manifest of what the rows depend on. Captions are outside and joined by the item's id.
"""

import contextlib
import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentdiff import rng
from latentdiff.config import UserError
from latentdiff.data.image import BadImage
from latentdiff.training.files import write_json

SUMMARY = "summary.json"  # of all shards, their sizes and sums, so that none need be opened at the start


@dataclass(frozen=True)
class LatentCacheConfig:
    enabled: bool = True  # encode every picture once, before training
    path: str = ""  # where it lies; empty: beside the runs, by its content, shared by runs with the same autoencoder
    copies: int = 1  # rows per picture, each with a crop (and flip) of its own
    shard_size: int = 8192  # rows per file
    batch_size: int = 256  # pictures encoded at once; halved when the device's memory does not suffice

    def __post_init__(self) -> None:
        for name in ("copies", "shard_size", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"cache.{name} is {getattr(self, name)}; it must be at least 1")


class LatentCache:
    """Rows of moments: item i's copy j is row i * copies + j."""

    def __init__(self, folder: Path, manifest: dict) -> None:
        self.folder, self.manifest = folder, manifest
        self.copies, self.shard_size = manifest["copies"], manifest["shard_size"]
        self.names, self.opened = shard_names(manifest), {}

    def __len__(self) -> int:
        return self.manifest["rows"]

    def row(self, r: int) -> dict[str, np.ndarray]:
        """mean [C, h, w], logvar [C, h, w] (KL only), and the key that chose the crop and the flip."""
        shard, place = divmod(r, self.shard_size)
        return self.shard(shard).row(place)

    def shard(self, i: int) -> "_Shard":
        """Shard i, opened when it is first asked for: a cache of any size opens at once."""
        if i not in self.opened:
            self.opened[i] = _Shard(self.folder / self.names[i])
        return self.opened[i]

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Per-channel mean and variance of the latents over all rows: Var(mean) + E[exp(logvar)]."""
        sums = np.array(self.summary()["sums"])  # [4, C]: n, sum, squares, variances
        if np.ndim(sums) == 0:
            raise UserError("none of the pictures can be read")
        mean = sums[1] / sums[0]
        return mean, sums[2] / sums[0] - mean**2 + sums[3] / sums[0]

    def summary(self) -> dict:
        """bytes: of every shard; sums: over all rows. A shard of another size than it was is refused."""
        path, sizes = self.folder / SUMMARY, [(self.folder / name).stat().st_size for name in self.names]
        if not path.exists():
            sums = np.asarray(sum(self.shard(i).arrays["sums"] for i in range(len(self.names))))
            with contextlib.suppress(OSError):  # not ours to write to
                write_json(path, {"bytes": sizes, "sums": sums.tolist()})
            return {"sums": sums}
        known = json.loads(path.read_text())
        for name, size, was in zip(self.names, sizes, known["bytes"]):
            if size != was:
                raise _damaged(self.folder / name, f"{size:,} bytes, not {was:,}")
        return known


def _damaged(path: Path, why: object) -> UserError:
    return UserError(f"{path} is damaged ({why}); delete it and start again: only its rows are made anew")


class CachedLatents:
    """A data set whose items are rows of the cache beside the fields of their item that need no pixels.

    pixels: beside the whole item, in the crop and flip that the row shows, for conditions that read pictures or maps.
    """

    def __init__(self, data: Any, cache: LatentCache, pixels: bool = False) -> None:
        self.data, self.cache, self.pixels = data, cache, pixels

    def __len__(self) -> int:
        return len(self.cache)

    def id(self, r: int) -> str:
        return self.data.id(r // self.cache.copies)

    def item(self, r: int, key: int) -> dict:
        row, i = self.cache.row(r), r // self.cache.copies
        if row.pop("id_hash") != id_hash(self.id(r)):
            where = f"row {r} of the latent cache {self.cache.folder}"
            raise UserError(f"{where} belongs to another picture than {self.id(r)}; delete that folder")
        if not row.pop("ok"):
            self.data.item(i, key)  # says why it cannot be read
            raise BadImage("could not be read when the latent cache was made; delete the cache to try again")
        shown = self.data.item(i, row["key"]) if self.pixels else {}
        return shown | self.data.record(i, key) | row


class _Shard:
    """One memory-mapped safetensors file: the header is read once, a row is a slice of bytes."""

    TYPES = {"F32": np.float32, "F64": np.float64, "I64": np.int64, "BOOL": np.bool_}

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                (length,), size = struct.unpack("<Q", file.read(8)), os.fstat(file.fileno()).st_size
                header = json.loads(file.read(min(length, size)))
            # mapped, and no file stays open: there may be more shards than a process may open files
            self.bytes = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).numpy()
            self.arrays = {
                name: self._open(about, 8 + length) for name, about in header.items() if name != "__metadata__"
            }
        except (OSError, ValueError, KeyError, struct.error) as error:
            raise _damaged(path, error) from error

    def __reduce__(self) -> tuple:
        return _Shard, (self.path,)  # a loader's worker that is not forked maps the file anew

    def _open(self, about: dict, start: int) -> np.ndarray:
        kind, count = self.TYPES[about["dtype"]], int(np.prod(about["shape"]))
        return np.frombuffer(self.bytes, kind, count, start + about["data_offsets"][0]).reshape(about["shape"])

    def row(self, place: int) -> dict[str, Any]:
        found = {name: np.array(a[place]) for name, a in self.arrays.items() if name in ("mean", "logvar")}
        return found | {name: self.arrays[name][place].item() for name in ("key", "id_hash", "ok")}


# ---- what making and reading share


def id_hash(item_id: str) -> int:
    return rng.key(item_id)


def shard_names(manifest: dict) -> list[str]:
    return [f"shard_{shard:05d}.safetensors" for shard in range(-(-manifest["rows"] // manifest["shard_size"]))]
