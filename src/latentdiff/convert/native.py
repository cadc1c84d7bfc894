"""A run made of weights that others trained, written as training would leave it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from latentdiff import config
from latentdiff.autoencoder.autoencoder import Autoencoder
from latentdiff.autoencoder.bottleneck import upcast
from latentdiff.build import weights_metadata
from latentdiff.config import UserError
from latentdiff.convert import stream
from latentdiff.convert.diffusers.folder import Weights
from latentdiff.data.tokenizer import CaptionTokenizer
from latentdiff.recipe import AutoencoderRecipe, DiffusionRecipe
from latentdiff.training import checkpoint


class Native(NamedTuple):
    """A run in memory; its frozen first stage is one, too."""

    recipe: AutoencoderRecipe | DiffusionRecipe
    weights: Weights
    first_stage: "Native | None" = None
    tokenizer: CaptionTokenizer | None = None
    step: int = 0  # how long it was trained
    notes: dict[str, str] = {}  # what else its weights say of themselves


def refuse_existing(path: Path) -> None:
    """UserError where there is something at `path` already."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists already; delete it, or write elsewhere")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write into that becomes `path` when all went well, and else nothing; UserError where there is one."""
    refuse_existing(path)
    aside = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        yield aside
        os.replace(aside, path)  # over an empty folder, if there is one
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_run(path: Path, made: Native) -> None:
    """The run's folder, complete or not at all."""
    with new_folder(path) as aside:
        hashed = "" if made.first_stage is None else _write(aside / "autoencoder", made.first_stage)
        _write(aside, made._replace(recipe=replace(made.recipe, name=path.name)), hashed)
        if made.tokenizer is not None:
            made.tokenizer.save(aside / "tokenizer.json")


def _write(folder: Path, made: Native, hashed: str = "") -> str:
    """Recipe and weights; the hash of the autoencoder, its own or the one given."""
    recipe = config.checked(made.recipe, type(made.recipe), "")
    if isinstance(recipe, AutoencoderRecipe):
        with torch.device("meta"):
            network = Autoencoder(recipe.autoencoder)
        network.load_state_dict({name: upcast(value) for name, value in made.weights.items()}, assign=True)
        hashed = network.weights_hash()
    folder.mkdir(exist_ok=True)
    checkpoint.write_json(folder / "recipe.json", config.to_dict(recipe))
    stream.write(folder / "model.safetensors", made.weights, weights_metadata(recipe, made.step, hashed) | made.notes)
    return hashed
