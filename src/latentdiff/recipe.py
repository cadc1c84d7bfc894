"""The recipes: what to train, on which data, and how. One per training script."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from latentdiff.autoencoder.autoencoder import AutoencoderConfig
from latentdiff.autoencoder.discriminator import DiscriminatorConfig
from latentdiff.autoencoder.loss import LossConfig
from latentdiff.conditioning.inpainting import MaskedConfig
from latentdiff.conditioning.label import LabelConfig
from latentdiff.conditioning.layout import LayoutConfig
from latentdiff.conditioning.low_res import LowResConfig
from latentdiff.conditioning.precomputed import PrecomputedConfig
from latentdiff.conditioning.semantic import SemanticConfig
from latentdiff.conditioning.text import TextConfig
from latentdiff.config import UserError, short_name
from latentdiff.data.coco import CocoConfig
from latentdiff.data.dataset import Subset
from latentdiff.data.degrade import DegradeConfig
from latentdiff.data.fields import DERIVED, ConditionFields
from latentdiff.data.folder import FolderConfig
from latentdiff.data.image import BadImageList
from latentdiff.data.latent_cache import LatentCacheConfig
from latentdiff.data.masks import MasksConfig
from latentdiff.data.shapes.dataset import ShapesConfig
from latentdiff.data.tar import TarConfig
from latentdiff.data.torchvision_datasets import TorchvisionConfig
from latentdiff.diffusion.alignment import AlignConfig
from latentdiff.diffusion.distillation import DistillConfig
from latentdiff.diffusion.loss import ObjectiveConfig
from latentdiff.diffusion.sampling_config import SamplingConfig
from latentdiff.diffusion.schedule import ScheduleConfig
from latentdiff.diffusion.unet import UNetConfig
from latentdiff.training.settings import TrainConfig

# The list of data formats and the list of conditions: to add one, write its file and name it here (docs/extend.md).
Data = ShapesConfig | FolderConfig | TarConfig | CocoConfig | TorchvisionConfig
Condition = TextConfig | LabelConfig | LayoutConfig | SemanticConfig | LowResConfig | MaskedConfig | PrecomputedConfig


@dataclass(frozen=True)
class AutoencoderRecipe:
    """Stage one: the autoencoder."""

    name: str = ""  # the run's folder; empty: the name of the recipe file followed by -autoencoder
    data: Data = ShapesConfig()  # the images
    autoencoder: AutoencoderConfig = AutoencoderConfig()  # the network
    loss: LossConfig = LossConfig()  # of the reconstruction
    discriminator: DiscriminatorConfig | None = DiscriminatorConfig()  # of the adversarial loss; none: without
    latent_norm: str = "scalar"  # normalization of the latents: scalar (one number, as the original) or channel
    freeze_encoder: bool = False  # with init: train the decoder only; diffusion models of the latents stay valid
    train: TrainConfig = TrainConfig(betas=(0.5, 0.9), lr=1e-4, weight_decay=0.0, grad_clip=0.0)  # the training loop
    init: str = ""  # fine-tune: a run whose EMA weights are the initial weights; empty: train from scratch
    init_partial: bool = False  # initialize tensors that do not fit the other run randomly; false: they are refused

    def named(self, stem: str) -> "AutoencoderRecipe":
        return self if self.name else replace(self, name=f"{stem}-autoencoder")


@dataclass(frozen=True)
class FrozenAutoencoderConfig:
    path: str = ""  # a stage-one run (folder or name), or an autoencoder recipe (.py), whose weights are then random
    latent_stats: str = "run"  # normalization: run (its own), data (measured on this data) or identity (none)

    def __post_init__(self) -> None:
        if self.latent_stats not in ("run", "data", "identity"):
            raise UserError(f"autoencoder.latent_stats is {self.latent_stats!r}; it must be run, data or identity")


@dataclass(frozen=True)
class DiffusionRecipe:
    """Stage two: the denoiser, in the latent space of a frozen autoencoder, and its conditions."""

    name: str = ""  # the run's folder; empty: the name of the recipe file
    autoencoder: FrozenAutoencoderConfig | str = FrozenAutoencoderConfig()  # the frozen first stage
    data: Data = ShapesConfig()  # the images and their captions
    cache: LatentCacheConfig = LatentCacheConfig()  # of the latents
    derived_fields: tuple[DegradeConfig | MasksConfig, ...] = ()  # computed from each image for the conditions
    conditions: tuple[Condition, ...] = ()  # what the U-Net is conditioned on
    unet: UNetConfig = UNetConfig()  # the denoiser
    schedule: ScheduleConfig = ScheduleConfig()  # the noise schedule
    objective: ObjectiveConfig = ObjectiveConfig()  # what is predicted, and the loss
    align: AlignConfig | None = None  # REPA: align the middle of the U-Net with features of a frozen network
    distill: DistillConfig | None = None  # consistency distillation of the run named by init, to sample in few steps
    train: TrainConfig = TrainConfig()  # the training loop
    sampling: SamplingConfig = SamplingConfig()  # defaults of sample.py and of the samples during training
    preview_prompts: tuple[str, ...] = ()  # captions sampled every train.sample_every steps; empty: validation captions
    init: str = ""  # fine-tune: a run whose EMA weights are the initial weights; empty: train from scratch
    init_partial: bool = False  # initialize tensors that do not fit the other run randomly; false: they are refused

    def __post_init__(self) -> None:
        if isinstance(self.autoencoder, str):
            object.__setattr__(self, "autoencoder", FrozenAutoencoderConfig(self.autoencoder))
        derived = {DERIVED[type(field)][0] for field in self.derived_fields}
        read = {name: condition for condition in self.conditions for name in condition.reads}
        for kind, (name, _) in DERIVED.items():
            if name in read and name not in derived:
                reader = short_name(type(read[name]))
                raise UserError(
                    f"conditions has {reader}, which reads {name}; add {short_name(kind)}() to derived_fields"
                )
            if name in derived and name not in read:
                raise UserError(f"derived_fields has {short_name(kind)}, but no condition reads {name}; remove it")

    def named(self, stem: str) -> "DiffusionRecipe":
        return self if self.name else replace(self, name=stem)


@dataclass(frozen=True)
class ClassifierRecipe:
    """A classifier of noisy latents, for classifier guidance of a diffusion run that is not conditioned on a class."""

    name: str = ""  # the run's folder; empty: the name of the recipe file
    autoencoder: FrozenAutoencoderConfig | str = FrozenAutoencoderConfig()  # that of the run to be guided
    data: Data = ShapesConfig()  # the images and their labels
    cache: LatentCacheConfig = LatentCacheConfig()  # of the latents
    label: LabelConfig = LabelConfig()  # the classes
    unet: UNetConfig = UNetConfig()  # of which the classifier is the encoder half
    schedule: ScheduleConfig = ScheduleConfig()  # that of the run to be guided
    train: TrainConfig = TrainConfig()  # the training loop

    def __post_init__(self) -> None:
        if isinstance(self.autoencoder, str):
            object.__setattr__(self, "autoencoder", FrozenAutoencoderConfig(self.autoencoder))

    def named(self, stem: str) -> "ClassifierRecipe":
        return self if self.name else replace(self, name=stem)


Recipe = AutoencoderRecipe | DiffusionRecipe | ClassifierRecipe


def open_data(recipe: Recipe, split: str) -> Any:
    """The dataset of a recipe: train, val or test; with --overfit all of them are the same few training items."""
    if recipe.train.overfit:
        return Subset(recipe.data.open("train"), recipe.train.overfit)
    return recipe.data.open(split)


def with_condition_fields(data: Any, conditions: tuple, derived_fields: tuple = ()) -> ConditionFields:
    """The dataset (or entries of the latent cache) with the fields that the conditions read in its items."""
    classes = {name: count for condition in conditions for name, count in condition.num_classes.items()}
    return ConditionFields(data, condition_fields(conditions), derived_fields, classes)


def condition_fields(conditions: tuple) -> tuple[str, ...]:
    """The fields that the conditions read, each once."""
    return tuple(dict.fromkeys(name for condition in conditions for name in condition.reads))


def bad_image_list(recipe: Recipe, folder: Path, data: Any) -> BadImageList:
    """The list of unreadable images in the run's folder."""
    return BadImageList(folder / "bad_images.jsonl", len(data), getattr(recipe.data, "max_bad_fraction", 1.0))
