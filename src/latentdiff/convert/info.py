"""What a file or folder of weights is: our runs, checkpoints of the original release, what diffusers saves."""

import hashlib
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentdiff.config import UserError, hash_of, short_name
from latentdiff.convert.compvis import key_maps, zoo
from latentdiff.convert.unpickle import open_weights
from latentdiff.recipe import AutoencoderRecipe, DiffusionRecipe
from latentdiff.training import checkpoint, run_dir

FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
LICENCE = re.compile("licen[cs]e|author|copyright|usage_hint|source|^base_model", re.IGNORECASE)
Facts = list[tuple[str, Any]]


def print_info(path: str) -> None:
    """Print what is known of a file or folder, a fact a line."""
    facts = look(Path(path))
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        print(f"{name.ljust(width)}  {value}")


def look(path: Path) -> Facts:
    if path.is_file():
        return [("path", path), *_file(path)]
    if (path / "recipe.json").is_file() or not path.exists():
        folder = run_dir.find_run(path)
        return [("path", folder), *_run(folder)]
    if (path / "model_index.json").is_file() or (path / "config.json").is_file():
        return [("path", path), *_diffusers(path)]
    raise UserError(f"{path} is neither a run (recipe.json), a diffusers folder (config.json) nor a file of weights")


# ---- our runs


def _run(folder: Path) -> Facts:
    recipe = run_dir.read_recipe(folder, DiffusionRecipe, AutoencoderRecipe)
    height, width = recipe.data.image_size
    two = isinstance(recipe, DiffusionRecipe)
    facts: Facts = [("kind", f"a run of latentdiff, stage {'two: diffusion' if two else 'one: autoencoder'}")]
    facts += [("pictures", f"{width}x{height}"), ("recipe", hash_of(recipe)), ("steps asked for", recipe.train.steps)]
    if two:
        facts += [("conditions", ", ".join(short_name(type(c)) for c in recipe.conditions) or "none")]
        facts += [("prediction", f"{recipe.objective.prediction}, schedule {recipe.schedule.kind}")]
    steps = [
        path.name.removeprefix("step_").lstrip("0") for path in checkpoint.list_checkpoints(folder / "checkpoints")
    ]
    facts += [("checkpoints", ", ".join(steps) or "none")]
    for name in ("model.safetensors", "autoencoder/model.safetensors"):
        if (folder / name).is_file():
            facts += [("", ""), ("file", name), *_weights(folder / name, ours=True)]
    return facts + _licences(folder)


# ---- files


def _file(path: Path) -> Facts:
    if path.suffix not in FILES:
        raise UserError(f"{path} is no file of weights; those end in {', '.join(FILES)}")
    return _weights(path) + _licences(path.parent)


def _weights(path: Path, ours: bool = False) -> Facts:
    """Of one file: its kind, what it holds and what it says about itself."""
    tensors, about = open_weights(path)
    facts: Facts = [] if ours else [("kind", kind_of(tensors, about))]
    facts += [("size", f"{path.stat().st_size / 1e6:,.1f} MB")]
    facts += [("tensors", f"{len(tensors)}, {count(tensors.values()):,} numbers of {_types(tensors)}")]
    facts += [(f"  {name}", f"{n} tensors, {numbers:,} numbers") for name, n, numbers in _groups(tensors)]
    shapes = [f"{name} {list(tensors[name].shape)}" for name in _ends(tensors)]
    facts += [("shapes", "; ".join(shapes)), ("sha256 of the file", sha256(path))]
    facts += [("sha256 of the tensors", weights_hash(tensors))]
    return facts + [(name, _short(value)) for name, value in about.items() if name != "format"]


def kind_of(tensors: dict[str, Tensor], about: dict) -> str:
    """In words, by the names of the tensors."""
    if "latentdiff.recipe" in about:
        return "weights of a run of latentdiff"
    if any(name.startswith((key_maps.UNET, "encoder.", key_maps.FIRST_STAGE)) for name in tensors):
        try:
            names = zoo.recognise(tensors).names
            return f"a checkpoint of the original release: {names[0]}" + _also(names[1:])
        except UserError:
            return "in the layout of the original release, but none of its models: convert it with its --config"
    if any(name.startswith(("down_blocks.", "encoder.down_blocks.", "decoder.up_blocks.")) for name in tensors):
        return "weights of a network of diffusers"
    return "tensors of no kind that is known here"


def _also(names: Iterable[str]) -> str:
    return f" (the same network: {', '.join(names)})" if names else ""


def count(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _types(tensors: dict[str, Tensor]) -> str:
    return ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}))


def _groups(tensors: dict[str, Tensor]) -> list[tuple[str, int, int]]:
    """The parts by the first word of their names, in the file's order: name, tensors, numbers."""
    groups: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        groups.setdefault(name.partition(".")[0] if "." in name else "(others)", []).append(tensor)
    return [(name, len(group), count(group)) for name, group in groups.items()]


def _ends(tensors: dict[str, Tensor], most: int = 3) -> list[str]:
    """The largest few."""
    return sorted(tensors, key=lambda name: -math.prod(tensors[name].shape))[:most]


def weights_hash(tensors: dict[str, Tensor]) -> str:
    """sha256 over sorted names, types, shapes and bytes: the same for any order in a file, and for any kind of file."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def sha256(path: Path) -> str:
    total = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            total.update(block)
    return total.hexdigest()


def _short(value: Any, most: int = 160) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


# ---- folders of diffusers


def _diffusers(folder: Path) -> Facts:
    """A pipeline's folder and its parts, or one model's."""
    index = folder / "model_index.json"
    if not index.is_file():
        return [("kind", f"{_json(folder / 'config.json').get('_class_name', 'a model')} of diffusers"), *_part(folder)]
    content = _json(index)
    facts: Facts = [("kind", f"{content.get('_class_name')} of diffusers {content.get('_diffusers_version', '')}")]
    for name, value in content.items():
        if isinstance(value, list) and (folder / name).is_dir():
            facts += [("", ""), ("part", f"{name}: {' '.join(map(str, value))}"), *_part(folder / name)]
    return facts + _licences(folder)


def _part(folder: Path) -> Facts:
    facts: Facts = []
    if (folder / "config.json").is_file():
        facts += [(f"  {k}", _short(v, 80)) for k, v in _json(folder / "config.json").items() if not k.startswith("_")]
    for path in sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin")):
        facts += [("file", path.name), *_weights(path)]
    return facts


def _json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    return content if isinstance(content, dict) else {}


# ---- licences


def _licences(folder: Path) -> Facts:
    """Files that tell what may be done with the weights, and what a model card says of it."""
    facts: Facts = [("licence file", p.name) for p in sorted(folder.iterdir()) if p.name.upper().startswith("LICEN")]
    card = folder / "README.md"
    if card.is_file():
        lines = card.read_text("utf-8", errors="replace").split("\n")[:60]
        facts += [("model card", line.strip()) for line in lines if LICENCE.match(line.strip()) and ":" in line]
    return facts or [("licence", "none is given")]
