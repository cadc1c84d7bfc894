"""Creating the latent cache: every rank encodes different shards; a shard under its final name is complete."""

import contextlib
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
from latentdiff.training.distributed import World
from latentdiff.training.files import atomic_path, write_json

Moments = tuple[Tensor, Tensor | None]


def open_cache(
    folder: Path, config: LatentCacheConfig, data: Any, weights_hash: str, encode: Callable[[dict], Moments],
    world: World, info: Callable[[str], None],
) -> LatentCache:  # fmt: skip
    """The cache in `folder`, created or completed if needed; the cache of anything else is refused (UserError).

    Args:
        weights_hash: of the autoencoder.
        encode: a batch -> the moments of batch["image"]. Each rank encodes its shards.
    """
    manifest = {
        "autoencoder": weights_hash, "data": data.fingerprint(), "copies": config.copies,
        "entries": len(data) * config.copies, "shard_size": config.shard_size,
    }  # fmt: skip
    _compare(folder / "manifest.json", manifest)
    names, existing = shard_names(manifest), set(os.listdir(folder)) if folder.exists() else set()
    missing = {shard for shard, name in enumerate(names) if name not in existing}
    if missing:
        progress = "" if len(missing) == len(names) else f": {len(missing)} of {len(names)} shards are missing"
        info(f"encoding {manifest['entries']} latents into {folder}{progress}")
    try:
        if missing:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "manifest.json", manifest)
            _delete_old_temporary_files(folder)
            (folder / SUMMARY).unlink(missing_ok=True)
        for first in range(0, len(names), world.size):
            if first + world.rank in missing:
                _write_shard(folder / names[first + world.rank], first + world.rank, manifest, config, data, encode)
            world.barrier()  # per shard, so that no rank reaches the timeout
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write the latent cache {folder}: {error}; complete shards are kept") from error
    return LatentCache(folder, manifest)


def entry_key(item_id: str, copy: int) -> int:
    """The key of the crop of a copy; its lowest bit is the flip, so copies alternate."""
    return rng.key(item_id, "copy", copy // 2) & ~1 | copy & 1


def _compare(path: Path, manifest: dict) -> None:
    """Refuse (UserError) a cache with another manifest."""
    if not path.exists():
        return
    try:
        existing = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is damaged ({error}); delete {path.parent} to create the cache again") from error
    for field, value in manifest.items():
        if existing.get(field) != value:
            raise UserError(
                f"the latent cache {path.parent} was created with another {field} ({existing.get(field)}, now {value});"
                f" delete it or choose another cache.path"
            )


def _write_shard(
    path: Path, shard: int, manifest: dict, config: LatentCacheConfig, data: Any, encode: Callable
) -> None:
    """Encode the entries of one shard in batches, smaller ones if memory does not suffice, and write them."""
    entries = range(shard * config.shard_size, min((shard + 1) * config.shard_size, manifest["entries"]))
    copies, indices = manifest["copies"], [k // manifest["copies"] for k in entries]
    keys = [entry_key(data.id(k // copies), k % copies) for k in entries]
    hashes = [id_hash(data.id(i)) for i in indices]
    tensors = {"key": np.array(keys, np.int64), "id_hash": np.array(hashes, np.int64), "ok": np.zeros(len(keys), bool)}
    start, size = 0, config.batch_size
    while start < len(keys):
        stop = min(start + size, len(keys))
        try:
            _encode_entries(tensors, indices, range(start, stop), data, encode)
            start = stop
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            size //= 2
    tensors["sums"] = _sums(tensors)
    with atomic_path(path) as tmp:
        save_file(tensors, tmp)


def _sums(tensors: dict[str, np.ndarray]) -> np.ndarray:
    """float64 [4, C]: per channel the count, sum and sum of squares of the means, and the sum of variances."""
    if "mean" not in tensors:
        return np.zeros(())  # no image of the shard can be read
    mean = tensors["mean"][tensors["ok"]].astype(np.float64)  # [N, C, h, w]
    variances = np.zeros_like(mean)
    if "logvar" in tensors:
        variances = np.exp(tensors["logvar"][tensors["ok"]].astype(np.float64))
    return np.stack([m.sum((0, 2, 3)) for m in (np.ones_like(mean), mean, mean**2, variances)])


def _encode_entries(
    tensors: dict[str, np.ndarray], indices: list[int], batch: range, data: Any, encode: Callable
) -> None:
    """Set "ok" of the entries of a batch whose image can be read, and their moments. indices: item of each entry."""
    items, readable = [], []
    for k in batch:
        with contextlib.suppress(BadImage):
            items.append(data.item(indices[k], int(tensors["key"][k])) | {"bad": []})
            readable.append(k)
    for name, values in zip(("mean", "logvar"), encode(collate(items)) if items else ()):
        if values is not None:
            values = values.float().cpu().numpy()
            if not np.isfinite(values).all():
                ids = f"{data.id(indices[batch.start])} to {data.id(indices[batch.stop - 1])}"
                raise UserError(f"the autoencoder returned a {name} that is not finite for one of the images {ids}")
            tensors.setdefault(name, np.zeros((len(indices), *values.shape[1:]), np.float32))[readable] = values
    tensors["ok"][readable] = True


def _delete_old_temporary_files(folder: Path) -> None:
    """Delete what killed processes left: temporary files not modified for an hour."""
    for path in folder.glob(".*.tmp"):
        if time.time() - path.stat().st_mtime > 3600:
            path.unlink(missing_ok=True)
