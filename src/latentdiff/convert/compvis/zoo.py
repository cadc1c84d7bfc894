"""Which released model a checkpoint is, by the names and shapes of its weights: the paper's recipes are the list."""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from latentdiff.autoencoder.autoencoder import Autoencoder
from latentdiff.build import build_diffusion
from latentdiff.config import UserError, read_recipe
from latentdiff.convert.compvis import key_map
from latentdiff.convert.compvis.model_config import Original
from latentdiff.data.tokenizer import SPECIALS, CaptionTokenizer, wordpiece
from latentdiff.recipe import AutoencoderRecipe, DiffusionRecipe

RECIPES = Path(__file__).resolve().parents[3] / "recipes"
SCALES = {"txt2img-1p4B-eval": 0.18215, "lsun_churches256": None, "lsun_churches-ldm-kl-8": None}  # others: 1
NETWORKS = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")  # of a first stage
ShapesConfig = dict[str, list[int]]


def recognise(state: dict[str, Tensor]) -> Original:
    """The released model with these weights (several have the same network), or UserError."""
    shapes = {name: list(value.shape) for name, value in state.items()}
    width = shapes.get(f"{key_map.UNET}input_blocks.0.0.weight", [0])[0]  # no U-Net: 0
    found = [name for name in _names("diffusion") if width == _stage_two(name)[0].unet.channels]
    if width:
        found = [name for name in found if _fits(_two_shapes(name), shapes, (key_map.UNET, f"{key_map.CONDITION}tr"))]
    else:
        shapes = {name.removeprefix(key_map.FIRST_STAGE): shape for name, shape in shapes.items()}
        found = [name for name in _names("autoencoder") if _fits(_one_shapes(name), shapes, NETWORKS)]
    if not found:
        raise UserError(
            f"these {len(shapes)} tensors ({', '.join(list(shapes)[:3])}, ...) are of none of the released models; "
            f"give the model's own config.yaml with --config"
        )
    if not width:
        return Original(_stage_one(found[0]), names=tuple(found))
    recipe, first_stage = _stage_two(found[0])
    return Original(first_stage, recipe, SCALES.get(found[0], 1.0), names=tuple(found))


def _names(stage: str) -> list[str]:
    return sorted(path.stem for path in RECIPES.glob(f"{stage}/paper/*.py"))


def _fits(wanted: ShapesConfig, shapes: ShapesConfig, prefixes: tuple[str, ...]) -> bool:
    """Whether all that is wanted is there, in its shape, and the parts with these prefixes have no more."""
    mine = {name for name in shapes if name.startswith(prefixes) and ".to_logits." not in name}
    return mine <= wanted.keys() and all(shapes.get(name) == shape for name, shape in wanted.items())


@cache
def _one_shapes(name: str) -> ShapesConfig:
    with torch.device("meta"):
        network = Autoencoder(_stage_one(name).autoencoder)
    return {name: list(parameter.shape) for name, parameter in network.named_parameters()}


@cache
def _two_shapes(name: str) -> ShapesConfig:
    recipe, first_stage = _stage_two(name)
    tokenizer = CaptionTokenizer(wordpiece(SPECIALS), 77)
    with torch.device("meta"):
        model = build_diffusion(recipe, Autoencoder(first_stage.autoencoder), tokenizer)
    parameters = dict(model.named_parameters())
    places = key_map.model_places(model)
    return {place.name: place.shape(parameters[ours].shape) for ours, place in places.items()}


@cache
def _stage_one(name: str) -> AutoencoderRecipe:
    return read_recipe(RECIPES / f"autoencoder/paper/{name}.py", AutoencoderRecipe)


@cache
def _stage_two(name: str) -> tuple[DiffusionRecipe, AutoencoderRecipe]:
    recipe = read_recipe(RECIPES / f"diffusion/paper/{name}.py", DiffusionRecipe)
    return recipe, _stage_one(recipe.autoencoder.path.removesuffix("-autoencoder"))
