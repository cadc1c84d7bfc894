"""What a file or folder of weights contains: a run, a checkpoint of the original release, or a model of diffusers."""

import hashlib
import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentdiff.config import UserError, hash_of, short_name
from latentdiff.convert.compvis import zoo
from latentdiff.convert.compvis.key_maps import FIRST_STAGE, UNET
from latentdiff.convert.diffusers.model_folder import read_json
from latentdiff.convert.unpickle import open_weights
from latentdiff.recipe import AutoencoderRecipe, DiffusionRecipe
from latentdiff.training import checkpoint, run_dir

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
LICENCE = re.compile("licen[cs]e|author|copyright|usage_hint|source|^base_model", re.IGNORECASE)
Lines = list[tuple[str, Any]]  # label, value


def print_info(path: str) -> None:
    """Print one line per property of a file or folder."""
    lines = describe(Path(path))
    width = max(len(label) for label, _ in lines)
    for label, value in lines:
        print(f"{label.ljust(width)}  {value}")


def describe(path: Path) -> Lines:
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise UserError(f"{path} is not a file of weights; its name must end in {', '.join(SUFFIXES)}")
        return [("path", path), *_describe_weights(path), *_describe_licence(path.parent)]
    if (path / "recipe.json").is_file() or not path.exists():
        folder = run_dir.find_run(path)
        return [("path", folder), *_describe_run(folder), *_describe_licence(folder)]
    if (path / "model_index.json").is_file() or (path / "config.json").is_file():
        return [("path", path), *_describe_diffusers(path)]
    raise UserError(f"{path} has no recipe.json or config.json; it must be a run, a model of diffusers, or a file")


def _describe_run(folder: Path) -> Lines:
    recipe = run_dir.read_recipe(folder, DiffusionRecipe, AutoencoderRecipe)
    height, width = recipe.data.image_size
    is_diffusion = isinstance(recipe, DiffusionRecipe)
    lines: Lines = [("kind", f"a run of latentdiff, stage {'two: diffusion' if is_diffusion else 'one: autoencoder'}")]
    lines += [("images", f"{width}x{height}"), ("recipe", hash_of(recipe)), ("train.steps", recipe.train.steps)]
    if is_diffusion:
        lines += [("conditions", ", ".join(short_name(type(c)) for c in recipe.conditions) or "none")]
        lines += [("prediction", f"{recipe.objective.prediction}, schedule {recipe.schedule.kind}")]
    steps = [str(run_dir.step_of(path)) for path in checkpoint.list_checkpoints(folder / "checkpoints")]
    lines += [("checkpoints", ", ".join(steps) or "none")]
    for name in ("model.safetensors", "autoencoder/model.safetensors"):
        if (folder / name).is_file():
            lines += [("", ""), ("file", name), *_describe_weights(folder / name)]
    return lines


def _describe_diffusers(folder: Path) -> Lines:
    """A pipeline and its components, or one model."""
    if not (folder / "model_index.json").is_file():
        kind = read_json(folder / "config.json").get("_class_name", "a model")
        return [("kind", f"{kind} of diffusers"), *_describe_component(folder)]
    index = read_json(folder / "model_index.json")
    lines: Lines = [("kind", f"{index.get('_class_name')} of diffusers {index.get('_diffusers_version', '')}")]
    for name, value in index.items():
        if isinstance(value, list) and (folder / name).is_dir():
            lines += [("", ""), ("component", f"{name}: {' '.join(map(str, value))}")]
            lines += _describe_component(folder / name)
    return lines + _describe_licence(folder)


def _describe_component(folder: Path) -> Lines:
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    lines: Lines = [(f"  {k}", _truncate(v, 80)) for k, v in config.items() if not k.startswith("_")]
    for path in sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin")):
        lines += [("file", path.name), *_describe_weights(path)]
    return lines


def _describe_weights(path: Path) -> Lines:
    tensors, metadata = open_weights(path)
    dtypes = ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}))
    lines: Lines = [("content", kind_of(tensors, metadata)), ("size", f"{path.stat().st_size / 1e6:,.1f} MB")]
    lines += [("tensors", f"{len(tensors)}, {_count(tensors.values()):,} parameters in {dtypes}")]
    groups: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        groups.setdefault(name.partition(".")[0] if "." in name else "(others)", []).append(tensor)
    lines += [(f"  {name}", f"{len(g)} tensors, {_count(g):,} parameters") for name, g in groups.items()]
    largest = sorted(tensors, key=lambda name: -math.prod(tensors[name].shape))[:3]
    lines += [("largest", "; ".join(f"{name} {list(tensors[name].shape)}" for name in largest))]
    lines += [("sha256 of the file", _file_hash(path)), ("sha256 of the tensors", weights_hash(tensors))]
    return lines + [(name, _truncate(value, 160)) for name, value in metadata.items() if name != "format"]


def kind_of(tensors: dict[str, Tensor], metadata: dict) -> str:
    """The kind of model, by the names of its tensors."""
    if "latentdiff.recipe" in metadata:
        return "weights of a run of latentdiff"
    if any(name.startswith((UNET, FIRST_STAGE, "encoder.")) for name in tensors):
        try:
            name, *others = zoo.recognise(tensors).names
        except UserError:
            return "in the format of the original release, but not a released model: convert it with --config"
        same = f" (the same network: {', '.join(others)})" if others else ""
        return f"a checkpoint of the original release: {name}{same}"
    if any(name.startswith(("down_blocks.", "encoder.down_blocks.", "decoder.up_blocks.")) for name in tensors):
        return "weights of a network of diffusers"
    return "unknown"


def _file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def weights_hash(tensors: dict[str, Tensor]) -> str:
    """sha256 of names, dtypes, shapes and bytes, which does not depend on the order or the format of a file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _count(tensors: Any) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _truncate(value: Any, length: int) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= length else f"{text[:length]}... ({len(text)} characters)"


def _describe_licence(folder: Path) -> Lines:
    """Licence files, and the lines of a model card about the licence and the authors."""
    lines: Lines = [("licence file", p.name) for p in sorted(folder.iterdir()) if p.name.upper().startswith("LICEN")]
    if (folder / "README.md").is_file():
        card = (folder / "README.md").read_text("utf-8", errors="replace").split("\n")[:60]
        lines += [("model card", line.strip()) for line in card if LICENCE.match(line.strip()) and ":" in line]
    return lines or [("licence", "not specified")]
