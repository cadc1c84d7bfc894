"""The networks of a recipe, with weights initialized from its seed."""

import datetime

import torch

from latentdiff.autoencoder.autoencoder import Autoencoder
from latentdiff.conditioning.condition import BuildContext
from latentdiff.conditioning.conditioner import Conditioner
from latentdiff.config import UserError, hash_of
from latentdiff.data.degrade import DegradeConfig
from latentdiff.data.tokenizer import CaptionTokenizer
from latentdiff.diffusion.alignment import Alignment
from latentdiff.diffusion.classifier import Classifier
from latentdiff.diffusion.schedule import Schedule
from latentdiff.diffusion.unet import UNet
from latentdiff.model import LatentDiffusion
from latentdiff.recipe import AutoencoderRecipe, ClassifierRecipe, DiffusionRecipe, Recipe

PREDICTION_TYPES = {"eps": "epsilon", "v": "v", "x0": "sample", "flow": "flow"}  # objective.prediction -> ModelSpec


def build_autoencoder(recipe: AutoencoderRecipe) -> Autoencoder:
    """The autoencoder of a stage-one recipe."""
    torch.manual_seed(recipe.train.seed)
    autoencoder = Autoencoder(recipe.autoencoder)
    if recipe.freeze_encoder:
        if not recipe.init:
            raise UserError("freeze_encoder is true, but init is empty; set init=RUN, the run whose encoder is kept")
        for module in (autoencoder.encoder, autoencoder.quant_conv, autoencoder.quantize):
            module.requires_grad_(False)
    return autoencoder


def build_diffusion(
    recipe: DiffusionRecipe, autoencoder: Autoencoder, tokenizer: CaptionTokenizer | None
) -> LatentDiffusion:
    """The diffusion model of a recipe; of the autoencoder it uses encode, z_channels and factor."""
    torch.manual_seed(recipe.train.seed)
    encode = lambda x: autoencoder.encode(x)  # noqa: E731 (not a bound method: see MaskedCondition)
    context = BuildContext(autoencoder.z_channels, autoencoder.factor, encode, tokenizer, sr_factor(recipe))
    conditioner = Conditioner([condition.build(context) for condition in recipe.conditions])
    z_channels = autoencoder.z_channels
    unet = UNet(
        recipe.unet, z_channels + conditioner.concat_channels, z_channels,
        conditioner.context_dim or None, conditioner.vector_dim or None,
    )  # fmt: skip
    unet.check_size(*(side // autoencoder.factor for side in recipe.data.image_size))
    model = LatentDiffusion(conditioner, unet, Schedule(recipe.schedule), recipe.objective)
    if recipe.align is not None:
        model.alignment = Alignment(recipe.align, recipe.unet.channels * recipe.unet.channel_mult[-1])
    model.validate_sampling(recipe.sampling)
    model.sampling = recipe.sampling
    return model


def build_classifier(recipe: ClassifierRecipe, autoencoder: Autoencoder) -> Classifier:
    """The classifier of noisy latents of a recipe."""
    torch.manual_seed(recipe.train.seed)
    return Classifier(recipe.unet, autoencoder.z_channels, recipe.label.classes)


def sr_factor(recipe: DiffusionRecipe) -> int:
    """The super-resolution factor: size of the images over that of their low-resolution copies; 1 without them."""
    factor = next((field.scale for field in recipe.derived_fields if isinstance(field, DegradeConfig)), 1)
    height, width = recipe.data.image_size
    if height % factor or width % factor:
        raise UserError(f"scale of Degrade is {factor}; it must divide the sides of the images, {width}x{height}")
    return factor


def weights_metadata(recipe: Recipe, step: int, autoencoder_hash: str) -> dict[str, str]:
    """The metadata of a weights file after `step` steps: our own keys, and those of ModelSpec for other tools.

    ModelSpec: github.com/Stability-AI/ModelSpec. autoencoder_hash: Autoencoder.weights_hash().
    """
    diffusion = isinstance(recipe, DiffusionRecipe)
    height, width = recipe.data.image_size
    metadata = {
        "latentdiff.recipe": hash_of(recipe),
        "latentdiff.step": str(step),
        "latentdiff.autoencoder": autoencoder_hash,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "latent-diffusion" if diffusion else "latent-diffusion/autoencoder",
        "modelspec.implementation": "latentdiff",
        "modelspec.title": recipe.name,
        "modelspec.resolution": f"{width}x{height}",
        "modelspec.date": datetime.date.today().isoformat(),
    }
    if diffusion:
        metadata["modelspec.prediction_type"] = PREDICTION_TYPES[recipe.objective.prediction]
    return metadata
