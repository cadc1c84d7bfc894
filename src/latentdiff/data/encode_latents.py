"""Making the latent cache: every rank encodes shards of its own; a shard that has its name is complete."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import save_file
from torch import Tensor

from latentdiff import rng
from latentdiff.config import UserError
from latentdiff.data.image import BadImage
from latentdiff.data.latent_cache import SUMMARY, LatentCache, LatentCacheConfig, id_hash, shard_names
from latentdiff.data.loader import collate
from latentdiff.training.files import atomic_path, write_json

Moments = tuple[Tensor, Tensor | None]


def open_cache(
    folder: Path,
    config: LatentCacheConfig,
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
        "rows": len(data) * config.copies, "shard_size": config.shard_size,
    }  # fmt: skip
    _compare(folder / "manifest.json", identity)
    there = set(os.listdir(folder)) if folder.exists() else set()
    missing = {shard for shard, name in enumerate(shard_names(identity)) if name not in there}
    if missing:
        say(f"encoding {identity['rows']} latents into {folder}" + _left(missing, identity))
    try:
        if missing:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "manifest.json", identity)
            _clear(folder)
            (folder / SUMMARY).unlink(missing_ok=True)
        for first in range(0, len(shard_names(identity)), world.size):
            if first + world.rank in missing:
                _write_shard(folder, first + world.rank, identity, config, data, encode)
            world.barrier()  # in step: no rank waits for longer than a shard takes
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write the latent cache {folder}: {error}; its whole shards are kept") from error
    return LatentCache(folder, identity)


def row_key(item_id: str, copy: int) -> int:
    """What chooses the crop of a copy; the lowest bit of a key is its flip, so copies alternate."""
    return rng.key(item_id, "copy", copy // 2) & ~1 | copy & 1


def _left(missing: set[int], identity: dict) -> str:
    total = len(shard_names(identity))
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


def _write_shard(
    folder: Path, shard: int, identity: dict, config: LatentCacheConfig, data: Any, encode: Callable
) -> None:
    """Encode one shard's rows and write them aside, then rename: a shard that has its name is complete."""
    rows = range(shard * config.shard_size, min((shard + 1) * config.shard_size, identity["rows"]))
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
    path = folder / shard_names(identity)[shard]
    with atomic_path(path) as tmp:
        save_file(tensors, tmp)


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
        ids.append(id_hash(item_id))
        try:
            items.append(data.item(r // identity["copies"], keys[-1]) | {"bad": []})
            ok.append(True)
        except BadImage:
            ok.append(False)
    moments = {}
    for name, values in zip(("mean", "logvar"), encode(collate(items)) if items else ()):
        if values is not None:
            moments[name] = values.float().cpu().numpy()
            if not np.isfinite(moments[name]).all():
                where = f"in rows {rows.start} to {rows.stop - 1}"
                raise UserError(f"the autoencoder gives a {name} that is not finite, {where}")
    return moments | {"key": np.array(keys, np.int64), "id_hash": np.array(ids, np.int64), "ok": np.array(ok)}


def _clear(folder: Path) -> None:
    """Delete what a kill left half-written: files aside that nobody has touched for an hour."""
    for path in folder.glob(".*.tmp"):
        if time.time() - path.stat().st_mtime > 3600:
            path.unlink(missing_ok=True)
