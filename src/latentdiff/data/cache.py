"""The latent cache: moments of every picture, encoded once, memory-mapped, and bound to what made them.

A folder of safetensors shards (mean and log-variance before normalisation, so the posterior is sampled anew at every
step) and a manifest of what the rows depend on. Captions are outside and joined by the item's id.
"""

import json
import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor

from latentdiff import keyed
from latentdiff.config import UserError
from latentdiff.data.loader import collate
from latentdiff.data.picture import BadPicture

Moments = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class Cache:
    enabled: bool = True  # encode every picture once, before training
    path: str = ""  # where it lies; empty: beside the runs, by its content, shared by runs with the same autoencoder
    copies: int = 1  # rows per picture, each with a crop (and flip) of its own
    shard_rows: int = 8192  # rows per file
    batch_size: int = 256  # pictures encoded at once; halved when the device's memory does not suffice


class LatentCache:
    """Rows of moments: item i's copy j is row i * copies + j."""

    def __init__(self, folder: Path, manifest: dict) -> None:
        self.manifest, self.copies, self.shard_rows = manifest, manifest["copies"], manifest["shard_rows"]
        self.shards = [_Shard(folder / _shard_name(s)) for s in range(-(-manifest["rows"] // self.shard_rows))]

    def __len__(self) -> int:
        return self.manifest["rows"]

    def row(self, r: int) -> dict[str, np.ndarray]:
        """mean [C, h, w], logvar [C, h, w] (KL only), and the key that chose the crop and the flip."""
        shard, place = divmod(r, self.shard_rows)
        return self.shards[shard].row(place)

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Per-channel mean and variance of the latents over all rows: Var(mean) + E[exp(logvar)]."""
        sums = sum(
            shard.array("sums").astype(np.float64) for shard in self.shards
        )  # [4, C]: n, sum, squares, variances
        mean = sums[1] / sums[0]
        return mean, sums[2] / sums[0] - mean**2 + sums[3] / sums[0]


class CachedLatents:
    """A data set whose items are rows of the cache beside the fields of their item that need no pixels."""

    def __init__(self, data: Any, cache: LatentCache) -> None:
        self.data, self.cache = data, cache

    def __len__(self) -> int:
        return len(self.cache)

    def id(self, r: int) -> str:
        return self.data.id(r // self.cache.copies)

    def item(self, r: int, key: int) -> dict:
        row = self.cache.row(r)
        if not row.pop("ok"):
            raise BadPicture("could not be read when the cache was made")
        if row.pop("id_hash") != _id_hash(self.id(r)):
            raise UserError(
                f"row {r} of the latent cache belongs to another picture than {self.id(r)}; delete the cache"
            )
        return self.data.record(r // self.cache.copies, key) | row


def open_cache(
    folder: Path,
    config: Cache,
    data: Any,
    seed: int,
    weights: str,
    encode: Callable[[dict], Moments],
    world: Any,
    say: Any,
) -> LatentCache:
    """The cache at `folder`, made or completed where needed; one that was made from something else is refused.

    encode(batch) gives the moments of batch["image"]. All ranks encode, each the shards that are its own.
    """
    identity = {
        "autoencoder": weights, "data": data.fingerprint(), "seed": seed, "copies": config.copies,
        "rows": len(data) * config.copies, "shard_rows": config.shard_rows,
    }  # fmt: skip
    path = folder / "manifest.json"
    manifest = _read_manifest(path, identity)
    if not manifest.get("complete"):
        if world.is_main:
            _write_manifest(path, identity | {"complete": False})
        world.barrier()
        say(f"encoding {identity['rows']} latents into {folder}")
        for shard in range(world.rank, -(-identity["rows"] // config.shard_rows), world.size):
            if not (folder / _shard_name(shard)).exists():
                _write_shard(folder, shard, identity, config, data, encode)
        world.barrier()
        manifest = identity | {"complete": True}
        if world.is_main:
            _write_manifest(path, manifest)
    return LatentCache(folder, manifest)


def row_key(seed: int, item_id: str, copy: int) -> int:
    """What chooses the crop of a copy; the lowest bit of a key is its flip, so copies alternate."""
    return keyed.key(seed, item_id, "copy", copy // 2) & ~1 | copy & 1


def _read_manifest(path: Path, identity: dict) -> dict:
    if not path.exists():
        return {}
    try:
        manifest = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is damaged ({error}); delete {path.parent} to make the cache anew") from error
    for field, value in identity.items():
        if manifest.get(field) != value:
            raise UserError(
                f"the latent cache {path.parent} was made with another {field} ({manifest.get(field)}, now {value}); "
                f"delete it or choose another cache.path"
            )
    return manifest


def _write_manifest(path: Path, manifest: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(".manifest.tmp")
    aside.write_text(json.dumps(manifest, indent=1) + "\n")
    aside.replace(path)


def _write_shard(folder: Path, shard: int, identity: dict, config: Cache, data: Any, encode: Callable) -> None:
    """Encode one shard's rows and write them aside, then rename: a shard that has its name is complete."""
    rows = range(shard * config.shard_rows, min((shard + 1) * config.shard_rows, identity["rows"]))
    parts, start, size = [], rows.start, config.batch_size
    while start < rows.stop:
        chunk = range(start, min(start + size, rows.stop))
        try:
            parts.append(_encode_rows(chunk, identity, data, encode))
            start = chunk.stop
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            size //= 2
    tensors = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    mean, ok = tensors["mean"][tensors["ok"]].astype(np.float64), tensors["ok"].sum()
    axes, count = (0, 2, 3), float(ok) * mean.shape[2] * mean.shape[3]
    variances = np.exp(tensors["logvar"][tensors["ok"]].astype(np.float64)).sum(axes) if "logvar" in tensors else 0.0
    channels = np.ones(mean.shape[1])
    tensors["sums"] = np.stack([count * channels, mean.sum(axes), (mean**2).sum(axes), variances * channels])
    aside = folder / f".{_shard_name(shard)}.tmp"
    save_file(tensors, aside)
    aside.replace(folder / _shard_name(shard))


def _encode_rows(rows: range, identity: dict, data: Any, encode: Callable) -> dict[str, np.ndarray]:
    """The moments of some rows; a picture that cannot be read leaves a row of zeros that is not ok."""
    items, ok, keys, ids = [], [], [], []
    for r in rows:
        item_id = data.id(r // identity["copies"])
        keys.append(row_key(identity["seed"], item_id, r % identity["copies"]))
        ids.append(_id_hash(item_id))
        try:
            items.append(data.item(r // identity["copies"], keys[-1]) | {"bad": []})
            ok.append(True)
        except BadPicture:
            ok.append(False)
    if not items:
        raise UserError(f"none of {len(rows)} pictures from {data.id(rows.start // identity['copies'])} on can be read")
    names = ("mean", "logvar")
    moments = {n: m.float().cpu().numpy() for n, m in zip(names, encode(collate(items))) if m is not None}
    full = {n: np.zeros((len(rows), *m.shape[1:]), np.float32) for n, m in moments.items()}
    for name, values in moments.items():
        if not np.isfinite(values).all():
            raise UserError(
                f"the autoencoder gives a {name} that is not finite, in rows {rows.start} to {rows.stop - 1}"
            )
        full[name][np.array(ok)] = values
    return full | {"key": np.array(keys, np.int64), "id_hash": np.array(ids, np.int64), "ok": np.array(ok)}


def _id_hash(item_id: str) -> int:
    return keyed.key(item_id)


def _shard_name(shard: int) -> str:
    return f"shard_{shard:05d}.safetensors"


class _Shard:
    """One memory-mapped safetensors file: the header is read once, a row is a slice of bytes."""

    TYPES = {"F32": np.float32, "F64": np.float64, "I64": np.int64, "BOOL": np.bool_}

    def __init__(self, path: Path) -> None:
        try:
            with open(path, "rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(length))
                self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self.arrays = {
                name: self._open(about, 8 + length) for name, about in header.items() if name != "__metadata__"
            }
        except (OSError, ValueError, KeyError, struct.error) as error:
            raise UserError(
                f"{path} is damaged ({error}); delete it and start again: only its rows are made anew"
            ) from error

    def _open(self, about: dict, start: int) -> np.ndarray:
        kind, count = self.TYPES[about["dtype"]], int(np.prod(about["shape"]))
        return np.frombuffer(self.bytes, kind, count, start + about["data_offsets"][0]).reshape(about["shape"])

    def array(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def row(self, place: int) -> dict[str, Any]:
        found = {name: np.array(a[place]) for name, a in self.arrays.items() if name in ("mean", "logvar")}
        return found | {name: self.arrays[name][place].item() for name in ("key", "id_hash", "ok")}
