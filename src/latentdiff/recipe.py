"""The two recipes, and the data that they name."""

from dataclasses import dataclass, replace
from pathlib import Path

from latentdiff import config
from latentdiff.autoencoder.autoencoder import AutoencoderConfig
from latentdiff.autoencoder.discriminator import DiscriminatorConfig
from latentdiff.autoencoder.loss import LossConfig
from latentdiff.conditioning.label import LabelConfig
from latentdiff.conditioning.layout import LayoutConfig
from latentdiff.conditioning.precomputed import PrecomputedConfig
from latentdiff.conditioning.spatial import LowResConfig, MaskedConfig, SemanticConfig
from latentdiff.conditioning.text import TextConfig
from latentdiff.config import UserError
from latentdiff.data.coco import CocoConfig
from latentdiff.data.degrade import DegradeConfig
from latentdiff.data.fields import ConditionFields
from latentdiff.data.folder import FolderConfig, FolderDataset
from latentdiff.data.image import BadImageList
from latentdiff.data.latent_cache import LatentCacheConfig
from latentdiff.data.loader import Subset
from latentdiff.data.masks import MasksConfig
from latentdiff.data.shapes.dataset import ShapesConfig, ShapesDataset
from latentdiff.data.tar import TarConfig, TarDataset
from latentdiff.data.torchvision_datasets import TorchvisionConfig, TorchvisionDataset
from latentdiff.diffusion.alignment import AlignConfig
from latentdiff.diffusion.distillation import DistillConfig
from latentdiff.diffusion.schedule import ScheduleConfig
from latentdiff.diffusion.unet import UNetConfig
from latentdiff.model import ObjectiveConfig, SamplingConfig
from latentdiff.training.settings import TrainConfig

Condition = TextConfig | LabelConfig | LayoutConfig | SemanticConfig | LowResConfig | MaskedConfig | PrecomputedConfig
READS = {  # what each kind of condition reads of a batch
    TextConfig: ("caption",), LabelConfig: ("label",), LayoutConfig: ("boxes",), SemanticConfig: ("segmentation",), LowResConfig: ("low_res",),
    MaskedConfig: ("image", "mask"), PrecomputedConfig: (),
}  # fmt: skip
MAKES = {DegradeConfig: "low_res", MasksConfig: "mask"}  # fields that are made from the picture
DATASETS = {
    ShapesConfig: ShapesDataset, FolderConfig: FolderDataset, TarConfig: TarDataset, CocoConfig: FolderDataset,
    TorchvisionConfig: TorchvisionDataset,
}  # fmt: skip


@dataclass(frozen=True)
class AutoencoderRecipe:
    """Stage one: what to train the autoencoder on, and how."""

    name: str = ""  # the run's folder; empty: the recipe file's name with -autoencoder after it
    data: ShapesConfig | FolderConfig | TarConfig | CocoConfig | TorchvisionConfig = ShapesConfig()  # the pictures
    autoencoder: AutoencoderConfig = AutoencoderConfig()  # the network
    loss: LossConfig = LossConfig()  # of the reconstruction
    discriminator: DiscriminatorConfig | None = DiscriminatorConfig()  # the adversary; none: train without
    latent_norm: str = "scalar"  # how latents are normalised: scalar (one number, as the original) or channel
    freeze_encoder: bool = False  # with init: train the decoder alone; latents, and what draws them, stay as they are
    train: TrainConfig = TrainConfig(betas=(0.5, 0.9), lr=1e-4, weight_decay=0.0, grad_clip=0.0)  # the loop
    init: str = ""  # a run whose averaged weights this one starts from; empty: from noise
    init_partial: bool = False  # tensors that do not fit the other run's start from noise; false: they are refused

    def named(self, stem: str) -> "AutoencoderRecipe":
        return self if self.name else replace(self, name=f"{stem}-autoencoder")


@dataclass(frozen=True)
class FrozenAutoencoderConfig:
    path: str = ""  # a stage-one run (folder or name), or an autoencoder recipe (.py), which is used untrained
    latent_stats: str = "run"  # of the latents: run (its own), data (measured on this data) or identity (0 and 1)


@dataclass(frozen=True)
class DiffusionRecipe:
    """Stage two: what to train the denoiser on, in which latent space, with which conditions, and how."""

    name: str = ""  # the run's folder; empty: the recipe file's name
    autoencoder: FrozenAutoencoderConfig | str = FrozenAutoencoderConfig()  # the frozen first stage
    data: ShapesConfig | FolderConfig | TarConfig | CocoConfig | TorchvisionConfig = (
        ShapesConfig()
    )  # the pictures and their captions
    cache: LatentCacheConfig = LatentCacheConfig()  # of the latents
    derived_fields: tuple[
        DegradeConfig | MasksConfig, ...
    ] = ()  # what is made from each picture for the conditions to read
    conditions: tuple[
        TextConfig | LabelConfig | LayoutConfig | SemanticConfig | LowResConfig | MaskedConfig | PrecomputedConfig, ...
    ] = ()  # what the U-Net is told
    unet: UNetConfig = UNetConfig()  # the denoiser
    schedule: ScheduleConfig = ScheduleConfig()  # signal and noise over time
    objective: ObjectiveConfig = ObjectiveConfig()  # what is predicted, and how errors weigh
    align: AlignConfig | None = None  # REPA: the U-Net's middle learns to see as a frozen network does
    distill: DistillConfig | None = None  # learn to draw in a few steps what the run named by init draws in many
    train: TrainConfig = TrainConfig()  # the loop
    sampling: SamplingConfig = SamplingConfig()  # defaults of sample.py, and of the pictures drawn while training
    preview_prompts: tuple[
        str, ...
    ] = ()  # captions drawn every train.sample_every steps; empty: some of the validation data
    init: str = ""  # a run whose averaged weights this one starts from; empty: from noise
    init_partial: bool = False  # tensors that do not fit the other run's start from noise; false: they are refused

    def __post_init__(self) -> None:
        if isinstance(self.autoencoder, str):
            object.__setattr__(self, "autoencoder", FrozenAutoencoderConfig(self.autoencoder))
        if self.autoencoder.latent_stats not in ("run", "data", "identity"):
            raise UserError(
                f"autoencoder.latent_stats is {self.autoencoder.latent_stats!r}; it must be run, data or identity"
            )
        made = {MAKES[type(field)] for field in self.derived_fields}
        for kind, name, maker in ((LowResConfig, "low_res", "Degrade()"), (MaskedConfig, "mask", "Masks()")):
            if name not in made and any(isinstance(c, kind) for c in self.conditions):
                raise UserError(
                    f"conditions has {config.short_name(kind)}, which reads {name}; fields must have {maker}"
                )
            if name in made and not any(isinstance(c, kind) for c in self.conditions):
                raise UserError(
                    f"fields has {maker}, which no condition reads; conditions must have {config.short_name(kind)}()"
                )

    def named(self, stem: str) -> "DiffusionRecipe":
        return self if self.name else replace(self, name=stem)


def open_data(recipe: AutoencoderRecipe | DiffusionRecipe, split: str):
    """The data set of a recipe: "train", "val" or "test"; with --overfit all are the same few items."""
    dataset = DATASETS[type(recipe.data)]
    if recipe.train.overfit:
        return Subset(dataset(recipe.data, "train"), recipe.train.overfit)
    return dataset(recipe.data, split)


def reads(recipe: DiffusionRecipe) -> tuple[str, ...]:
    """The fields that the conditions read, each once."""
    return tuple(dict.fromkeys(name for c in recipe.conditions for name in READS[type(c)]))


def with_fields(recipe: DiffusionRecipe, data) -> ConditionFields:
    """The data set (or rows of the cache) with the fields of the conditions in its items, made where need be."""
    classes = {
        READS[type(c)][0]: c.classes
        for c in recipe.conditions
        if isinstance(c, LabelConfig | LayoutConfig | SemanticConfig)
    }
    return ConditionFields(data, reads(recipe), recipe.derived_fields, classes)


def bad_list(recipe: AutoencoderRecipe | DiffusionRecipe, folder: Path, data) -> BadImageList:
    """The pictures of a run that cannot be read, listed in its folder."""
    return BadImageList(folder / "bad_images.jsonl", len(data), getattr(recipe.data, "max_bad", 1.0))


def size_of(recipe: AutoencoderRecipe | DiffusionRecipe) -> tuple[int, int]:
    """Height and width of the training pictures."""
    if isinstance(recipe.data, ShapesConfig):
        return recipe.data.height, recipe.data.width
    return recipe.data.size, recipe.data.width or recipe.data.size
