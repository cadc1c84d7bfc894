"""A run made of weights that were trained elsewhere, written as training would have left it."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from latentdiff import config
from latentdiff.autoencoder.autoencoder import Autoencoder, AutoencoderConfig
from latentdiff.autoencoder.bottleneck import IdentityConfig, upcast
from latentdiff.build import weights_metadata
from latentdiff.convert.files import new_folder, write_safetensors
from latentdiff.convert.key_map import Weights
from latentdiff.data.tokenizer import CaptionTokenizer
from latentdiff.recipe import AutoencoderRecipe, DiffusionRecipe
from latentdiff.training.files import write_json

PIXEL_SPACE = AutoencoderConfig(channel_mult=(), z_channels=3, bottleneck=IdentityConfig())


class ConvertedRun(NamedTuple):
    """A run in memory."""

    recipe: AutoencoderRecipe | DiffusionRecipe
    weights: Weights
    first_stage: "ConvertedRun | None" = None  # of a diffusion run
    tokenizer: CaptionTokenizer | None = None
    step: int = 0  # steps of training
    metadata: dict[str, str] = {}  # further metadata of the weights file


def write_run(path: Path, run: ConvertedRun) -> None:
    """Write the run's folder; after an error there is none."""
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
