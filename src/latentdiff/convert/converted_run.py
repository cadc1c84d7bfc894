"""Writing the results of a conversion, completely or not at all: runs of latentdiff, folders and safetensors files."""

import json
import os
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from latentdiff import config
from latentdiff.autoencoder.autoencoder import Autoencoder, AutoencoderConfig
from latentdiff.autoencoder.bottleneck import IdentityConfig, upcast
from latentdiff.build import weights_metadata
from latentdiff.config import UserError
from latentdiff.convert.key_map import Weights
from latentdiff.data.tokenizer import CaptionTokenizer
from latentdiff.recipe import AutoencoderRecipe, DiffusionRecipe
from latentdiff.training.files import atomic_path, write_json

PIXEL_SPACE = AutoencoderConfig(channel_mult=(), z_channels=3, bottleneck=IdentityConfig())
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


class ConvertedRun(NamedTuple):
    """A run with weights that were trained elsewhere."""

    recipe: AutoencoderRecipe | DiffusionRecipe
    weights: Weights
    first_stage: "ConvertedRun | None" = None  # of a diffusion run
    tokenizer: CaptionTokenizer | None = None
    step: int = 0  # steps of training
    metadata: dict[str, str] = {}  # further metadata of the weights file


def factor_of(config: AutoencoderConfig) -> int:
    """Pixels per latent position and side."""
    return 2 ** max(0, len(config.channel_mult) - 1)


def write_run(path: Path, run: ConvertedRun) -> None:
    """Write the folder of a run as training would have left it."""
    with new_folder(path) as tmp:
        autoencoder_hash = _write_weights(tmp / "autoencoder", run.first_stage) if run.first_stage else ""
        _write_weights(tmp, run._replace(recipe=replace(run.recipe, name=path.name)), autoencoder_hash)
        if run.tokenizer is not None:
            run.tokenizer.save(tmp / "tokenizer.json")


def _write_weights(folder: Path, run: ConvertedRun, autoencoder_hash: str = "") -> str:
    """Write recipe.json and model.safetensors; returns the hash of the autoencoder."""
    recipe = config.checked(run.recipe, type(run.recipe), "")
    if isinstance(recipe, AutoencoderRecipe):
        with torch.device("meta"):
            autoencoder = Autoencoder(recipe.autoencoder)
        autoencoder.load_state_dict({name: upcast(value) for name, value in run.weights.items()}, assign=True)
        autoencoder_hash = autoencoder.weights_hash()
    folder.mkdir(exist_ok=True)
    write_json(folder / "recipe.json", config.to_dict(recipe))
    metadata = weights_metadata(recipe, run.step, autoencoder_hash) | run.metadata
    write_safetensors(folder / "model.safetensors", run.weights, metadata)
    return autoencoder_hash


def refuse_existing(path: Path) -> None:
    """Raise UserError if `path` exists; an empty folder is allowed."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} already exists; delete it, or choose another output")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block succeeds and is removed when it fails."""
    refuse_existing(path)
    tmp = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(tmp, ignore_errors=True)
    try:
        tmp.mkdir(parents=True)
        yield tmp
        os.replace(tmp, path)  # also replaces an empty folder
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def write_safetensors(path: Path, tensors: Weights, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, one tensor after the other: there is no second copy of memory-mapped weights."""
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # wide types first, for alignment
    header, end = {"__metadata__": {"format": "pt"} | (metadata or {})}, 0
    for name in order:
        tensor, start = tensors[name], end
        end += tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with atomic_path(path) as tmp, open(tmp, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            file.write(tensors[name].detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
