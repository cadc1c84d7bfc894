"""The latent cache: the moments of every image, encoded once, memory-mapped, and bound to what they depend on.

A folder of safetensors shards (mean and log-variance before normalization: the posterior is sampled at every step) and
a manifest of what the entries depend on. Captions are not part of it; they are joined by the id of the item.
"""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file

from latentdiff import rng
from latentdiff.config import UserError
from latentdiff.data.image import BadImage
from latentdiff.training.files import write_json

SUMMARY = "summary.json"  # sizes and sums of all shards, so that no shard is opened at the start


@dataclass(frozen=True)
class LatentCacheConfig:
    enabled: bool = True  # encode every image once, before training
    path: str = (
        ""  # folder; empty: beside the runs, named by its content, for all runs with the same autoencoder and data
    )
    copies: int = 1  # entries per image, each with a different crop (and flip)
    shard_size: int = 8192  # entries per file
    batch_size: int = 256  # images encoded at once; halved when the device runs out of memory

    def __post_init__(self) -> None:
        for name in ("copies", "shard_size", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"cache.{name} is {getattr(self, name)}; it must be at least 1")


class LatentCache:
    """Entries of moments: copy j of item i is entry i * copies + j."""

    def __init__(self, folder: Path, manifest: dict) -> None:
        self.folder, self.manifest = folder, manifest
        self.copies, self.shard_size = manifest["copies"], manifest["shard_size"]
        self.names, self.opened = shard_names(manifest), {}

    def __len__(self) -> int:
        return self.manifest["entries"]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"opened": {}}  # a spawned worker opens the shards itself

    def entry(self, k: int) -> dict[str, Any]:
        """mean [C, h, w], logvar [C, h, w] (KL only), and the key of its crop and flip."""
        shard, i = divmod(k, self.shard_size)
        arrays = self.shard(shard)
        moments = {name: np.array(arrays[name][i]) for name in ("mean", "logvar") if name in arrays}
        return moments | {name: arrays[name][i].item() for name in ("key", "id_hash", "ok")}

    def shard(self, i: int) -> dict[str, np.ndarray]:
        """The memory-mapped arrays of shard i, opened at its first use: a cache of any size opens at once."""
        if i not in self.opened:
            path = self.folder / self.names[i]
            try:
                self.opened[i] = {name: tensor.numpy() for name, tensor in load_file(path).items()}
            except (OSError, SafetensorError) as error:
                raise _damaged(path, error) from error
        return self.opened[i]

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance [C] of the latents over all entries: Var(mean) + E[exp(logvar)]."""
        sums = np.array(self.summary()["sums"])  # [4, C]: n, sum, squares, variances
        if np.ndim(sums) == 0:
            raise UserError("none of the images can be read")
        mean = sums[1] / sums[0]
        return mean, sums[2] / sums[0] - mean**2 + sums[3] / sums[0]

    def summary(self) -> dict:
        """bytes of every shard, and sums over all entries. A shard whose size has changed is refused."""
        path, sizes = self.folder / SUMMARY, [(self.folder / name).stat().st_size for name in self.names]
        if not path.exists():
            sums = np.asarray(sum(self.shard(i)["sums"] for i in range(len(self.names))))
            with contextlib.suppress(OSError):  # the folder may be read-only
                write_json(path, {"bytes": sizes, "sums": sums.tolist()})
            return {"sums": sums}
        summary = json.loads(path.read_text())
        for name, size, expected in zip(self.names, sizes, summary["bytes"]):
            if size != expected:
                raise _damaged(self.folder / name, f"{size:,} bytes, not {expected:,}")
        return summary


def _damaged(path: Path, why: object) -> UserError:
    return UserError(f"{path} is damaged ({why}); delete it and start again: only its entries are encoded again")


class CachedLatents:
    """A dataset whose items are entries of the cache, with the fields of their item that need no image.

    images: with the whole item, in the crop and flip of the entry, for conditions that read images or maps.
    """

    def __init__(self, data: Any, cache: LatentCache, images: bool = False) -> None:
        self.data, self.cache, self.images = data, cache, images

    def __len__(self) -> int:
        return len(self.cache)

    def id(self, k: int) -> str:
        return self.data.id(k // self.cache.copies)

    def item(self, k: int, key: int) -> dict:
        entry, i = self.cache.entry(k), k // self.cache.copies
        if entry.pop("id_hash") != id_hash(self.id(k)):
            where = f"entry {k} of the latent cache {self.cache.folder}"
            raise UserError(f"{where} belongs to another image than {self.id(k)}; delete that folder")
        if not entry.pop("ok"):
            self.data.item(i, key)  # raises the reason
            raise BadImage("could not be read when the latent cache was created; delete the cache to try again")
        fields = self.data.item(i, entry["key"]) if self.images else {}
        return fields | self.data.record(i, key) | entry


# ---- shared with encode_latents.py


def id_hash(item_id: str) -> int:
    return rng.key(item_id)


def shard_names(manifest: dict) -> list[str]:
    return [f"shard_{shard:05d}.safetensors" for shard in range(-(-manifest["entries"] // manifest["shard_size"]))]
