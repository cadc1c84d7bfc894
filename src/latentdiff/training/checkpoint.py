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
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        for name, tensors in parts.items():
            write_tensors(aside / f"{name}.safetensors", tensors)
        sizes = {p.name: p.stat().st_size for p in aside.iterdir()}
        write_json(aside / "state.json", state | {"step": step, "sizes": sizes})
        shutil.rmtree(final, ignore_errors=True)
        os.rename(aside, final)
        _flush(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise UserError(f"cannot write the checkpoint {final}: {error}; the last one is intact") from error
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


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
    """One safetensors file, atomically."""
    aside = path.with_name(f".{path.name}.tmp")
    save_file(
        {name: t.detach().cpu().contiguous() for name, t in tensors.items()},
        aside,
        metadata={"format": "pt"} | (metadata or {}),
    )
    _flush(aside)
    os.replace(aside, path)


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
