"""Recognises the released models by the names and shapes of their weights; the list is recipes/*/paper."""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from latentdiff.autoencoder.autoencoder import Autoencoder
from latentdiff.build import build_diffusion
from latentdiff.config import UserError, read_recipe
from latentdiff.convert.compvis.key_maps import CONDITION, FIRST_STAGE, UNET, model_key_map
from latentdiff.convert.compvis.model_config import CompVisModel
from latentdiff.convert.key_map import shapes_of
from latentdiff.data.tokenizer import SPECIALS, CaptionTokenizer, wordpiece
from latentdiff.recipe import AutoencoderRecipe, DiffusionRecipe

RECIPES = Path(__file__).resolve().parents[4] / "recipes"
SCALES = {"txt2img-1p4B-eval": 0.18215, "lsun_churches256": None, "lsun_churches-ldm-kl-8": None}  # of all others: 1
AUTOENCODER_PREFIXES = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
DIFFUSION_PREFIXES = (UNET, f"{CONDITION}transformer.")
SizesOf = dict[str, list[int]]  # name of a tensor -> its shape


def recognise(state: dict[str, Tensor]) -> CompVisModel:
    """The released model with these weights; several may have the same network. UserError if there is none."""
    shapes = {name: list(value.shape) for name, value in state.items()}
    channels = shapes.get(f"{UNET}input_blocks.0.0.weight", [0])[0]  # 0: no U-Net
    if channels:
        names = [name for name in _names("diffusion") if channels == _diffusion_recipes(name)[0].unet.channels]
        names = [name for name in names if _fits(_diffusion_shapes(name), shapes, DIFFUSION_PREFIXES)]
    else:
        shapes = {name.removeprefix(FIRST_STAGE): shape for name, shape in shapes.items()}
        names = [n for n in _names("autoencoder") if _fits(_autoencoder_shapes(n), shapes, AUTOENCODER_PREFIXES)]
    if not names:
        raise UserError(
            f"these {len(shapes)} tensors ({', '.join(list(shapes)[:3])}, ...) are of none of the released models; "
            f"give the model's own config.yaml with --config"
        )
    if not channels:
        return CompVisModel(_autoencoder_recipe(names[0]), names=tuple(names))
    recipe, first_stage = _diffusion_recipes(names[0])
    return CompVisModel(first_stage, recipe, SCALES.get(names[0], 1.0), names=tuple(names))


def _names(stage: str) -> list[str]:
    return sorted(path.stem for path in RECIPES.glob(f"{stage}/paper/*.py"))


def _fits(expected: SizesOf, shapes: SizesOf, prefixes: tuple[str, ...]) -> bool:
    """Whether all expected tensors exist, in their shape, and there are no others with these prefixes."""
    names = {name for name in shapes if name.startswith(prefixes) and ".to_logits." not in name}
    return names <= expected.keys() and all(shapes.get(name) == shape for name, shape in expected.items())


@cache
def _autoencoder_shapes(name: str) -> SizesOf:
    with torch.device("meta"):
        autoencoder = Autoencoder(_autoencoder_recipe(name).autoencoder)
    return {name: list(shape) for name, shape in shapes_of(autoencoder).items()}


@cache
def _diffusion_shapes(name: str) -> SizesOf:
    recipe, first_stage = _diffusion_recipes(name)
    tokenizer = CaptionTokenizer(wordpiece(SPECIALS), 77)
    with torch.device("meta"):
        model = build_diffusion(recipe, Autoencoder(first_stage.autoencoder), tokenizer)
    shapes = shapes_of(model)
    return {entry.src[0]: entry.src_shape(shapes[dst]) for dst, entry in model_key_map(model).items()}


@cache
def _autoencoder_recipe(name: str) -> AutoencoderRecipe:
    return read_recipe(RECIPES / f"autoencoder/paper/{name}.py", AutoencoderRecipe)


@cache
def _diffusion_recipes(name: str) -> tuple[DiffusionRecipe, AutoencoderRecipe]:
    recipe = read_recipe(RECIPES / f"diffusion/paper/{name}.py", DiffusionRecipe)
    return recipe, _autoencoder_recipe(recipe.autoencoder.path.removesuffix("-autoencoder"))
