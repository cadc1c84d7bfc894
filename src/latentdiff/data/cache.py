"""The latent cache: moments of every picture, encoded once, memory-mapped, and bound to what made them.

A folder of safetensors shards (mean and log-variance before normalisation, so the posterior is sampled anew at every
step) and a manifest of what the rows depend on. Captions are outside and joined by the item's id.
"""

import contextlib
import json
import os
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import save_file
from torch import Tensor

from latentdiff import keyed
from latentdiff.config import UserError
from latentdiff.data.loader import collate
from latentdiff.data.picture import BadPicture

Moments = tuple[Tensor, Tensor | None]
SUMMARY = "summary.json"  # of all shards, their sizes and sums, so that none need be opened at the start


@dataclass(frozen=True)
class Cache:
    enabled: bool = True  # encode every picture once, before training
    path: str = ""  # where it lies; empty: beside the runs, by its content, shared by runs with the same autoencoder
    copies: int = 1  # rows per picture, each with a crop (and flip) of its own
    shard_rows: int = 8192  # rows per file
    batch_size: int = 256  # pictures encoded at once; halved when the device's memory does not suffice

    def __post_init__(self) -> None:
        for name in ("copies", "shard_rows", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"cache.{name} is {getattr(self, name)}; it must be at least 1")


class LatentCache:
    """Rows of moments: item i's copy j is row i * copies + j."""

    def __init__(self, folder: Path, manifest: dict) -> None:
        self.folder, self.manifest = folder, manifest
        self.copies, self.shard_rows = manifest["copies"], manifest["shard_rows"]
        self.names, self.opened = _shard_names(manifest), {}

    def __len__(self) -> int:
        return self.manifest["rows"]

    def row(self, r: int) -> dict[str, np.ndarray]:
        """mean [C, h, w], logvar [C, h, w] (KL only), and the key that chose the crop and the flip."""
        shard, place = divmod(r, self.shard_rows)
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
                _write_json(path, {"bytes": sizes, "sums": sums.tolist()})
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
        if row.pop("id_hash") != _id_hash(self.id(r)):
            where = f"row {r} of the latent cache {self.cache.folder}"
            raise UserError(f"{where} belongs to another picture than {self.id(r)}; delete that folder")
        if not row.pop("ok"):
            self.data.item(i, key)  # says why it cannot be read
            raise BadPicture("could not be read when the latent cache was made; delete the cache to try again")
        shown = self.data.item(i, row["key"]) if self.pixels else {}
        return shown | self.data.record(i, key) | row


def open_cache(
    folder: Path,
    config: Cache,
    data: Any,
    weights: str,
    encode: Callable[[dict], Moments],
    world: Any,
    say: Any,
) -> LatentCache:
    """The cache at `folder`, made or completed where needed; one that was made from something else is refused.

    encode(batch) gives the moments of batch["image"]. All ranks encode, each the shards that are its own.
    """
    identity = {
        "autoencoder": weights, "data": data.fingerprint(), "copies": config.copies,
        "rows": len(data) * config.copies, "shard_rows": config.shard_rows,
    }  # fmt: skip
    _compare(folder / "manifest.json", identity)
    there = set(os.listdir(folder)) if folder.exists() else set()
    missing = {shard for shard, name in enumerate(_shard_names(identity)) if name not in there}
    if missing:
        say(f"encoding {identity['rows']} latents into {folder}" + _left(missing, identity))
    try:
        if missing:
            _write_json(folder / "manifest.json", identity)
            _clear(folder)
            (folder / SUMMARY).unlink(missing_ok=True)
        for first in range(0, len(_shard_names(identity)), world.size):
            if first + world.rank in missing:
                _write_shard(folder, first + world.rank, identity, config, data, encode)
            world.barrier()  # in step: no rank waits for longer than a shard takes
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write the latent cache {folder}: {error}; its whole shards are kept") from error
    return LatentCache(folder, identity)


def row_key(item_id: str, copy: int) -> int:
    """What chooses the crop of a copy; the lowest bit of a key is its flip, so copies alternate."""
    return keyed.key(item_id, "copy", copy // 2) & ~1 | copy & 1


def _left(missing: set[int], identity: dict) -> str:
    total = len(_shard_names(identity))
    return "" if len(missing) == total else f": {len(missing)} of {total} shards are missing"


def _compare(path: Path, identity: dict) -> None:
    """UserError if the cache was made from something else."""
    if not path.exists():
        return
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


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = _aside(path)
    aside.write_text(json.dumps(content, indent=1) + "\n")
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
    tensors = {name: np.concatenate([part[name] for part in parts]) for name in ("key", "id_hash", "ok")}
    for name in ("mean", "logvar"):
        found = [part[name] for part in parts if name in part]
        if found:
            values = np.concatenate(found)
            tensors[name] = np.zeros((len(rows), *values.shape[1:]), np.float32)
            tensors[name][tensors["ok"]] = values
    tensors["sums"] = _sums(tensors)
    path = folder / _shard_names(identity)[shard]
    aside = _aside(path)
    try:
        save_file(tensors, aside)
        with open(aside, "rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _sums(tensors: dict[str, np.ndarray]) -> np.ndarray:
    """float64 [4, C]: per channel the count, sum and sum of squares of the means, and the sum of variances."""
    if "mean" not in tensors:
        return np.zeros(())  # no picture of the shard can be read
    mean = tensors["mean"][tensors["ok"]].astype(np.float64)  # [N, C, h, w]
    variances = np.zeros_like(mean)
    if "logvar" in tensors:
        variances = np.exp(tensors["logvar"][tensors["ok"]].astype(np.float64))
    return np.stack([m.sum((0, 2, 3)) for m in (np.ones_like(mean), mean, mean**2, variances)])


def _encode_rows(rows: range, identity: dict, data: Any, encode: Callable) -> dict[str, np.ndarray]:
    """The moments of the rows whose picture can be read, which "ok" names."""
    items, ok, keys, ids = [], [], [], []
    for r in rows:
        item_id = data.id(r // identity["copies"])
        keys.append(row_key(item_id, r % identity["copies"]))
        ids.append(_id_hash(item_id))
        try:
            items.append(data.item(r // identity["copies"], keys[-1]) | {"bad": []})
            ok.append(True)
        except BadPicture:
            ok.append(False)
    moments = {}
    for name, values in zip(("mean", "logvar"), encode(collate(items)) if items else ()):
        if values is not None:
            moments[name] = values.float().cpu().numpy()
            if not np.isfinite(moments[name]).all():
                where = f"in rows {rows.start} to {rows.stop - 1}"
                raise UserError(f"the autoencoder gives a {name} that is not finite, {where}")
    return moments | {"key": np.array(keys, np.int64), "id_hash": np.array(ids, np.int64), "ok": np.array(ok)}


def _id_hash(item_id: str) -> int:
    return keyed.key(item_id)


def _shard_names(manifest: dict) -> list[str]:
    return [f"shard_{shard:05d}.safetensors" for shard in range(-(-manifest["rows"] // manifest["shard_rows"]))]


def _clear(folder: Path) -> None:
    """Delete what a kill left half-written: files aside that nobody has touched for an hour."""
    for path in folder.glob(".*.tmp"):
        if time.time() - path.stat().st_mtime > 3600:
            path.unlink(missing_ok=True)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")  # another run may be making the same cache


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
