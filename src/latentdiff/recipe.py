"""The two recipes, and the data that they name."""

from dataclasses import dataclass, replace
from pathlib import Path

from latentdiff.autoencoder.autoencoder import AutoencoderConfig
from latentdiff.autoencoder.discriminator import DiscriminatorConfig
from latentdiff.autoencoder.loss import LossConfig
from latentdiff.conditioning.precomputed import Given
from latentdiff.conditioning.label import Label
from latentdiff.conditioning.layout import Layout
from latentdiff.conditioning.spatial import LowRes, Masked, Semantic
from latentdiff.conditioning.text import Text
from latentdiff.config import UserError
from latentdiff.data.latent_cache import Cache
from latentdiff.data.coco import Coco
from latentdiff.data.degrade import Degrade
from latentdiff.data.fields import Fields
from latentdiff.data.folder import Folder, FolderDataset
from latentdiff.data.loader import First
from latentdiff.data.masks import Masks
from latentdiff.data.image import BadList
from latentdiff.data.shapes.dataset import Shapes, ShapesDataset
from latentdiff.data.tar import Tars, TarsDataset
from latentdiff.data.torchvision_datasets import Torchvision, TorchvisionDataset
from latentdiff.diffusion.alignment import Align
from latentdiff.diffusion.distillation import Distill
from latentdiff.diffusion.schedule import ScheduleConfig
from latentdiff.diffusion.unet import UNetConfig
from latentdiff.model import Objective, Sampling
from latentdiff.training.settings import Train

Condition = Text | Label | Layout | Semantic | LowRes | Masked | Given
READS = {  # what each kind of condition reads of a batch
    Text: ("caption",), Label: ("label",), Layout: ("boxes",), Semantic: ("segmentation",), LowRes: ("low_res",),
    Masked: ("image", "mask"), Given: (),
}  # fmt: skip
MAKES = {Degrade: "low_res", Masks: "mask"}  # fields that are made from the picture
DATASETS = {
    Shapes: ShapesDataset, Folder: FolderDataset, Tars: TarsDataset, Coco: FolderDataset,
    Torchvision: TorchvisionDataset,
}  # fmt: skip


@dataclass(frozen=True)
class AutoencoderRecipe:
    """Stage one: what to train the autoencoder on, and how."""

    name: str = ""  # the run's folder; empty: the recipe file's name with -autoencoder after it
    data: Shapes | Folder | Tars | Coco | Torchvision = Shapes()  # the pictures
    autoencoder: AutoencoderConfig = AutoencoderConfig()  # the network
    loss: LossConfig = LossConfig()  # of the reconstruction
    discriminator: DiscriminatorConfig | None = DiscriminatorConfig()  # the adversary; none: train without
    statistics: str = "scalar"  # how latents are normalised: scalar (one number, as the original) or channel
    freeze_encoder: bool = False  # with init: train the decoder alone; latents, and what draws them, stay as they are
    train: Train = Train(betas=(0.5, 0.9), lr=1e-4, weight_decay=0.0, clip=0.0)  # the loop
    init: str = ""  # a run whose averaged weights this one starts from; empty: from noise
    init_partial: bool = False  # tensors that do not fit the other run's start from noise; false: they are refused

    def named(self, stem: str) -> "AutoencoderRecipe":
        return self if self.name else replace(self, name=f"{stem}-autoencoder")


@dataclass(frozen=True)
class FrozenAutoencoder:
    path: str = ""  # a stage-one run (folder or name), or an autoencoder recipe (.py), which is used untrained
    statistics: str = "run"  # of the latents: run (its own), data (measured on this data) or identity (0 and 1)


@dataclass(frozen=True)
class DiffusionRecipe:
    """Stage two: what to train the denoiser on, in which latent space, with which conditions, and how."""

    name: str = ""  # the run's folder; empty: the recipe file's name
    autoencoder: FrozenAutoencoder | str = FrozenAutoencoder()  # the frozen first stage
    data: Shapes | Folder | Tars | Coco | Torchvision = Shapes()  # the pictures and their captions
    cache: Cache = Cache()  # of the latents
    fields: tuple[Degrade | Masks, ...] = ()  # what is made from each picture for the conditions to read
    conditions: tuple[Text | Label | Layout | Semantic | LowRes | Masked | Given, ...] = ()  # what the U-Net is told
    unet: UNetConfig = UNetConfig()  # the denoiser
    schedule: ScheduleConfig = ScheduleConfig()  # signal and noise over time
    objective: Objective = Objective()  # what is predicted, and how errors weigh
    align: Align | None = None  # REPA: the U-Net's middle learns to see as a frozen network does
    distill: Distill | None = None  # learn to draw in a few steps what the run named by init draws in many
    train: Train = Train()  # the loop
    sampling: Sampling = Sampling()  # defaults of sample.py, and of the pictures drawn while training
    preview: tuple[str, ...] = ()  # captions drawn every train.sample_every steps; empty: some of the validation data
    init: str = ""  # a run whose averaged weights this one starts from; empty: from noise
    init_partial: bool = False  # tensors that do not fit the other run's start from noise; false: they are refused

    def __post_init__(self) -> None:
        if isinstance(self.autoencoder, str):
            object.__setattr__(self, "autoencoder", FrozenAutoencoder(self.autoencoder))
        if self.autoencoder.statistics not in ("run", "data", "identity"):
            raise UserError(
                f"autoencoder.statistics is {self.autoencoder.statistics!r}; it must be run, data or identity"
            )
        made = {MAKES[type(field)] for field in self.fields}
        for kind, name, maker in ((LowRes, "low_res", "Degrade()"), (Masked, "mask", "Masks()")):
            if name not in made and any(isinstance(c, kind) for c in self.conditions):
                raise UserError(f"conditions has {kind.__name__}, which reads {name}; fields must have {maker}")
            if name in made and not any(isinstance(c, kind) for c in self.conditions):
                raise UserError(f"fields has {maker}, which no condition reads; conditions must have {kind.__name__}()")

    def named(self, stem: str) -> "DiffusionRecipe":
        return self if self.name else replace(self, name=stem)


def open_data(recipe: AutoencoderRecipe | DiffusionRecipe, split: str):
    """The data set of a recipe: "train", "val" or "test"; with --overfit all are the same few items."""
    dataset = DATASETS[type(recipe.data)]
    if recipe.train.overfit:
        return First(dataset(recipe.data, "train"), recipe.train.overfit)
    return dataset(recipe.data, split)


def reads(recipe: DiffusionRecipe) -> tuple[str, ...]:
    """The fields that the conditions read, each once."""
    return tuple(dict.fromkeys(name for c in recipe.conditions for name in READS[type(c)]))


def with_fields(recipe: DiffusionRecipe, data) -> Fields:
    """The data set (or rows of the cache) with the fields of the conditions in its items, made where need be."""
    classes = {READS[type(c)][0]: c.classes for c in recipe.conditions if isinstance(c, Label | Layout | Semantic)}
    return Fields(data, reads(recipe), recipe.fields, classes)


def bad_list(recipe: AutoencoderRecipe | DiffusionRecipe, folder: Path, data) -> BadList:
    """The pictures of a run that cannot be read, listed in its folder."""
    return BadList(folder / "bad_pictures.jsonl", len(data), getattr(recipe.data, "max_bad", 1.0))


def size_of(recipe: AutoencoderRecipe | DiffusionRecipe) -> tuple[int, int]:
    """Height and width of the training pictures."""
    if isinstance(recipe.data, Shapes):
        return recipe.data.height, recipe.data.width
    return recipe.data.size, recipe.data.width or recipe.data.size
