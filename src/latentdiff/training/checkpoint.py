"""Checkpoints: folders of safetensors and JSON. They are renamed when complete: every folder step_<step> is whole."""

import json
import os
import shutil
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from latentdiff.config import UserError
from latentdiff.training.files import atomic_path, fsync_path, write_json

Tensors = dict[str, Tensor]


def save(folder: Path, step: int, tensors: dict[str, Tensors], scalars: dict, keep: int) -> Path:
    """Write folder/step_<step>/ and delete all but the `keep` newest checkpoints.

    Args:
        tensors: file name -> tensors, one safetensors file each.
        scalars: the content of state.json beside the step.
    """
    final = folder / f"step_{step:08d}"
    tmp = folder / f".{final.name}.tmp"
    try:
        _delete_hidden(folder)
        tmp.mkdir(parents=True)
        for name, content in tensors.items():
            write_tensors(tmp / f"{name}.safetensors", content)
        sizes = {p.name: p.stat().st_size for p in tmp.iterdir()}
        write_json(tmp / "state.json", scalars | {"step": step, "sizes": sizes})
        fsync_path(tmp)
        if final.exists():
            _hide(final)
        os.rename(tmp, final)
        fsync_path(folder)
        for old in list_checkpoints(folder)[:-keep]:
            _hide(old)
        _delete_hidden(folder)
    except OSError as error:
        shutil.rmtree(tmp, ignore_errors=True)
        raise UserError(f"cannot write the checkpoint {final}: {error}; the last checkpoint is intact") from error
    return final


def _hide(checkpoint: Path) -> None:
    """Rename a checkpoint before it is deleted, so that no half-deleted one has its name."""
    os.rename(checkpoint, checkpoint.with_name(f".{checkpoint.name}.old"))


def _delete_hidden(folder: Path) -> None:
    """Delete hidden folders: old checkpoints and interrupted writes. On NFS this may fail; the next save retries."""
    for hidden in folder.glob(".step_*"):
        shutil.rmtree(hidden, ignore_errors=True)


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(folder.glob("step_*"))


def load(path: Path) -> tuple[dict[str, Tensors], dict]:
    """The tensors of a checkpoint, on the CPU, and its scalars; raises UserError if it is damaged."""
    try:
        scalars = json.loads((path / "state.json").read_text())
        for name, size in scalars["sizes"].items():
            if (path / name).stat().st_size != size:
                raise ValueError(f"{name} has {(path / name).stat().st_size} bytes of {size}")
        return {p.stem: load_file(p) for p in path.glob("*.safetensors")}, scalars
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(
            f"checkpoint {path} is damaged ({error}); delete this folder to resume from the previous checkpoint"
        ) from error


def write_tensors(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> None:
    """Write one safetensors file atomically. Tied weights are written under each of their names."""
    contiguous, storages = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        contiguous[name] = tensor.clone() if storage in storages else tensor  # safetensors refuses shared memory
        storages.add(storage)
    try:
        with atomic_path(path) as tmp:
            save_file(contiguous, tmp, metadata={"format": "pt"} | (metadata or {}))
    except (OSError, SafetensorError) as error:
        raise OSError(f"cannot write {path}: {error}") from error


def read_tensors(path: Path) -> Tensors:
    """The tensors of a safetensors file, on the CPU."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as safetensors ({error}); check that the file is complete") from error


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file."""
    with safe_open(path, "pt") as file:
        return file.metadata() or {}
