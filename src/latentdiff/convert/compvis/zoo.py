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
PREFIXES = {  # of the tensors that a model must have exactly
    "autoencoder": ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv."),
    "diffusion": (UNET, f"{CONDITION}transformer."),
}


def recognise(state: dict[str, Tensor]) -> CompVisModel:
    """The released model with these weights; several may have the same network. UserError if there is none."""
    shapes = {name: list(value.shape) for name, value in state.items()}
    channels = shapes.get(f"{UNET}input_blocks.0.0.weight", [0])[0]  # 0: no U-Net
    if not channels:
        shapes = {name.removeprefix(FIRST_STAGE): shape for name, shape in shapes.items()}
    stage = "diffusion" if channels else "autoencoder"
    names = sorted(path.stem for path in RECIPES.glob(f"{stage}/paper/*.py"))
    if channels:  # without building all networks
        names = [name for name in names if _recipes(stage, name)[1].unet.channels == channels]
    names = [name for name in names if _fits(_shapes(stage, name), shapes, PREFIXES[stage])]
    if not names:
        raise UserError(
            f"these {len(shapes)} tensors ({', '.join(list(shapes)[:3])}, ...) are of none of the released models; "
            f"give the model's own config.yaml with --config"
        )
    first_stage, diffusion = _recipes(stage, names[0])
    return CompVisModel(first_stage, diffusion, SCALES.get(names[0], 1.0), names=tuple(names))


def _fits(expected: dict[str, list[int]], shapes: dict[str, list[int]], prefixes: tuple[str, ...]) -> bool:
    """Whether all expected tensors exist, in their shape, and there are no others with these prefixes."""
    names = {name for name in shapes if name.startswith(prefixes) and ".to_logits." not in name}
    return names <= expected.keys() and all(shapes.get(name) == shape for name, shape in expected.items())


@cache
def _recipes(stage: str, name: str) -> tuple[AutoencoderRecipe, DiffusionRecipe | None]:
    if stage == "autoencoder":
        return read_recipe(RECIPES / f"autoencoder/paper/{name}.py", AutoencoderRecipe), None
    recipe = read_recipe(RECIPES / f"diffusion/paper/{name}.py", DiffusionRecipe)
    return _recipes("autoencoder", recipe.autoencoder.path.removesuffix("-autoencoder"))[0], recipe


@cache
def _shapes(stage: str, name: str) -> dict[str, list[int]]:
    """The tensors of a released model: name -> shape."""
    first_stage, diffusion = _recipes(stage, name)
    with torch.device("meta"):
        autoencoder = Autoencoder(first_stage.autoencoder)
        if diffusion is None:
            return {name: list(shape) for name, shape in shapes_of(autoencoder).items()}
        model = build_diffusion(diffusion, autoencoder, CaptionTokenizer(wordpiece(SPECIALS), 77))
    shapes = shapes_of(model)
    return {entry.src[0]: entry.src_shape(shapes[dst]) for dst, entry in model_key_map(model).items()}
