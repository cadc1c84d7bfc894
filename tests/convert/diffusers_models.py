"""Helpers of the tests of the converters: models of diffusers with random weights, their imports and exports."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import latentdiff
from latentdiff.build import build_autoencoder, build_diffusion
from latentdiff.convert.converted_run import ConvertedRun, write_run
from latentdiff.convert.diffusers.export_run import export_run
from latentdiff.convert.diffusers.import_folder import import_folder
from latentdiff.recipe import AutoencoderRecipe, DiffusionRecipe

diffusers = pytest.importorskip("diffusers")
TOLERANCE = 1e-5  # relative to the largest value
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "circle", "##s", "blue", ","]


def vae_options(*widths: int, attention: tuple[int, ...] = (), groups: int = 4, **others: object) -> dict:
    """Options of an autoencoder of diffusers."""
    return {
        "block_out_channels": widths,
        "norm_num_groups": groups,
        "down_block_types": tuple(f"{'Attn' * (i in attention)}DownEncoderBlock2D" for i in range(len(widths))),
        "up_block_types": tuple(f"{'Attn' * (i in attention)}UpDecoderBlock2D" for i in range(len(widths)))[::-1],
    } | others


def unet_options(
    *widths: int, attention: tuple[int, ...] = (), kind: str = "CrossAttn", plain: str = "", **others: object
) -> dict:
    """Options of a U-Net of diffusers; kind, plain: prefixes of the types of blocks with and without attention."""

    def block_type(way: str, i: int) -> str:
        return f"{kind}{way}Block2D" if i in attention else f"{plain}{way}{'sample' * bool(plain)}Block2D"

    return {
        "block_out_channels": widths,
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "sample_size": 8,
        "down_block_types": tuple(block_type("Down", i) for i in range(len(widths))),
        "up_block_types": tuple(block_type("Up", i) for i in range(len(widths)))[::-1],
    } | others


@torch.no_grad()
def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter random, none zero, with activations of about unit variance."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        std = 0.2 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * std + 0.5 * (parameter.ndim == 1))
    return model.eval()


def imported(model: nn.Module, folder: Path, name: str = "run", **options: str):
    """The run of a model: saved, imported and loaded."""
    model.save_pretrained(folder / f"{name}-diffusers")
    import_folder(str(folder / f"{name}-diffusers"), output=str(folder / name), **options)
    return latentdiff.load_run(folder / name)


def exported(folder: Path, name: str = "run") -> Path:
    """A run of `folder`, exported to a folder that diffusers reads."""
    export_run(str(folder / name), str(folder / f"{name}-exported"))
    return folder / f"{name}-exported"


def random_run(recipe: AutoencoderRecipe | DiffusionRecipe, folder: Path, first_stage: AutoencoderRecipe | None = None,
           tokenizer=None, scale: float = 1.0) -> Path:  # fmt: skip
    """A run with random weights, as training would leave it."""
    if isinstance(recipe, AutoencoderRecipe):
        model = randomised(build_autoencoder(recipe))
        model.set_latent_stats(0.0, scale)
        write_run(folder, ConvertedRun(recipe, model.state_dict()))
        return folder
    autoencoder = randomised(build_autoencoder(first_stage))
    autoencoder.set_latent_stats(0.0, scale)
    model = randomised(build_diffusion(recipe, autoencoder, tokenizer), seed=1)
    write_run(
        folder, ConvertedRun(recipe, model.state_dict(), ConvertedRun(first_stage, autoencoder.state_dict()), tokenizer)
    )
    return folder


def relative_error(a: Tensor, b: Tensor) -> float:
    """The largest difference, divided by the largest value."""
    assert a.shape == b.shape
    return ((a - b).abs().max() / b.abs().max()).item()
