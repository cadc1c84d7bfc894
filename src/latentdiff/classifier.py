"""Classifiers of noisy latents: their recipe, what it builds, and how a finished one is loaded and guides."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from latentdiff import load
from latentdiff.autoencoder.autoencoder import Autoencoder
from latentdiff.conditioning.label import LabelConfig
from latentdiff.config import UserError
from latentdiff.diffusion import guidance
from latentdiff.diffusion.classifier import Classifier
from latentdiff.diffusion.samplers import Denoise
from latentdiff.model import LatentDiffusion
from latentdiff.recipe import DiffusionRecipe
from latentdiff.training import run_dir


@dataclass(frozen=True)
class ClassifierRecipe(DiffusionRecipe):
    """What a classifier is trained on: as in the recipe of what it is to guide, but for `conditions`, the one Label
    that it is to tell, and `unet`, of which it is half. Nothing is drawn from it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.conditions) != 1 or not isinstance(self.conditions[0], LabelConfig):
            raise UserError("conditions of a classifier must be one Label, whose classes it learns to tell")


def build_classifier(recipe: ClassifierRecipe, autoencoder: Autoencoder) -> Classifier:
    """The classifier with weights initialised from the recipe's seed."""
    torch.manual_seed(recipe.train.seed)
    return Classifier(recipe.unet, autoencoder.z_channels, recipe.conditions[0].classes)


def load_classifier(path: str | Path, model: LatentDiffusion) -> Classifier:
    """A trained classifier that is to guide `model`; it must know the same latents under the same noise."""
    folder = run_dir.find_run(path)
    recipe = run_dir.read_recipe(folder, ClassifierRecipe)
    autoencoder = load.load_autoencoder(folder / "autoencoder")
    ours, theirs = (
        (a.weights_hash(), a.shift.tolist(), a.scale.tolist()) for a in (model.autoencoder.cpu(), autoencoder)
    )
    if ours != theirs:
        raise UserError(f"classifier {folder} was trained on the latents of another autoencoder than this run")
    if recipe.schedule != model.schedule.config:
        raise UserError(
            f"classifier {folder} was trained with schedule {recipe.schedule}, this run with {model.schedule.config}; "
            f"they must be the same"
        )
    classifier = build_classifier(recipe, autoencoder)
    classifier.load_state_dict(load.weights_of(folder))
    device = next(model.unet.parameters()).device
    model.autoencoder.to(device)
    return classifier.eval().requires_grad_(False).to(device)


def towards(
    classifier: Classifier, label: Tensor, scale: float, model: LatentDiffusion
) -> Callable[[Denoise, Callable], Denoise]:
    """What LatentDiffusion.draw puts around the denoiser to draw pictures of class label [B]."""
    log_p = lambda x, t: classifier.log_p(x, t, label)  # noqa: E731
    return lambda denoise, noise: guidance.classifier_guidance(denoise, log_p, scale, model.schedule)
