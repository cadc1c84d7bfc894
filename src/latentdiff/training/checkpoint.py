"""Checkpoints: safetensors and JSON, written aside, flushed, then renamed. A folder that has its name is complete."""

import json
import os
import shutil
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from latentdiff.config import UserError

Tensors = dict[str, Tensor]


def save(folder: Path, step: int, parts: dict[str, Tensors], state: dict, keep: int) -> Path:
    """Write folder/step_<step>/ with one safetensors file per part and state.json, then prune to the `keep` newest."""
    final = folder / f"step_{step:08d}"
    aside = folder / f".{final.name}.tmp"
    try:
        _clear(folder)
        aside.mkdir(parents=True)
        for name, tensors in parts.items():
            write_tensors(aside / f"{name}.safetensors", tensors)
        sizes = {p.name: p.stat().st_size for p in aside.iterdir()}
        write_json(aside / "state.json", state | {"step": step, "sizes": sizes})
        _flush(aside)
        if final.exists():
            _hide(final)
        os.rename(aside, final)
        _flush(folder)
        for old in list_checkpoints(folder)[:-keep]:
            _hide(old)
        _clear(folder)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise UserError(f"cannot write the checkpoint {final}: {error}; the last one is intact") from error
    return final


def _hide(checkpoint: Path) -> None:
    """Take its name away before it is deleted: what has a name is complete at every moment."""
    os.rename(checkpoint, checkpoint.with_name(f".{checkpoint.name}.old"))


def _clear(folder: Path) -> None:
    """Delete what is hidden: of an older checkpoint, or of a write that was killed.

    What cannot go yet is tried again at the next: NFS keeps files that some process still has open, or mapped.
    """
    for hidden in folder.glob(".step_*"):
        shutil.rmtree(hidden, ignore_errors=True)


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(folder.glob("step_*"))


def load(path: Path) -> tuple[dict[str, Tensors], dict]:
    """All parts of a checkpoint, on the CPU, and its state; a damaged one is refused, and named."""
    try:
        state = json.loads((path / "state.json").read_text())
        for name, size in state["sizes"].items():
            if (path / name).stat().st_size != size:
                raise ValueError(f"{name} has {(path / name).stat().st_size} bytes of {size}")
        return {p.stem: load_file(p) for p in path.glob("*.safetensors")}, state
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(
            f"checkpoint {path} is damaged ({error}); delete that folder to go on from the one before"
        ) from error


def write_tensors(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> None:
    """One safetensors file, atomically. Weights that are tied are written under each of their names."""
    aside, plain, seen = path.with_name(f".{path.name}.tmp"), {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        plain[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    try:
        save_file(plain, aside, metadata={"format": "pt"} | (metadata or {}))
        _flush(aside)
        os.replace(aside, path)
    except (OSError, SafetensorError) as error:
        aside.unlink(missing_ok=True)
        raise OSError(f"cannot write {path}: {error}") from error


def read_tensors(path: Path) -> Tensors:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as safetensors ({error}); is it complete?") from error


def read_metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def write_json(path: Path, data: dict) -> None:
    """One JSON file, atomically."""
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_text(json.dumps(data, indent=1) + "\n")
    _flush(aside)
    os.replace(aside, path)


def _flush(path: Path) -> None:
    """Make sure that a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
