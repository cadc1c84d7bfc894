"""What a condition provides: settings for the recipe, a module for the network, and the options of sample.py.

A condition is one file of this folder: a settings class derived from ConditionConfig and a module derived from
ConditionModule. Its settings class is listed once, in recipe.py. docs/extend.md adds one step by step.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from latentdiff.conditioning.cond import Cond
from latentdiff.config import UserError
from latentdiff.data.fields import check_classes, stack_field
from latentdiff.data.image import BadImage, open_image
from latentdiff.data.tokenizer import CaptionTokenizer

Fields = dict[str, Any]  # field name -> value of one item, or a list or tensor of a batch


class BuildContext(NamedTuple):
    """What the module of a condition may need to know of the run."""

    z_channels: int
    factor: int  # pixels per latent position and side
    encode: Callable[[Tensor], Tensor]  # images [B, 3, H, W] in [-1, 1] -> z [B, C, h, w]
    tokenizer: CaptionTokenizer | None
    sr_factor: int  # size of an image over that of its low-resolution copy; 1 without super-resolution


class ConditionModule(nn.Module):
    """Base class of the networks: forward(batch, drop) -> Cond.

    Attributes:
        reads: the fields of a data batch that `prepare` uses.
        dropout: probability of hiding the condition from a training sample; 0: it is never hidden.
        context_dim, concat_channels, vector_dim: width of what it adds to each input of the U-Net (0: nothing).
    """

    reads: tuple[str, ...] = ()
    dropout = 0.0
    context_dim = concat_channels = vector_dim = 0

    def prepare(self, batch: Fields, strict: bool = False) -> dict[str, Tensor]:
        """The fields of a data batch as the CPU tensors that `forward` reads.

        strict: refuse (UserError) input that training would truncate.
        """
        return {name: stack_field(name, batch[name]) for name in self.reads}

    def forward(self, batch: dict[str, Tensor], drop: Tensor) -> Cond:
        """batch: prepared fields on the device; drop: bool [B], True where the condition is hidden."""
        raise NotImplementedError


class ConditionConfig:
    """Base class of the settings; subclasses are frozen dataclasses.

    Attributes:
        reads: the fields of a data batch that the condition uses.
        reads_files: whether the values of its options are files, for which a folder of files may stand.
    """

    reads: tuple[str, ...] = ()
    reads_files = True

    @property
    def num_classes(self) -> dict[str, int]:
        """Field -> number of classes, for fields that hold class numbers."""
        return {}

    def build(self, context: BuildContext) -> ConditionModule:
        raise NotImplementedError

    def inputs(self) -> dict[str, str]:
        """Options of sample.py (with underscores) -> what each one takes; all are required."""
        return {}

    def read_input(self, option: str, value: str, class_names: dict[str, list[str]]) -> Fields:
        """The value of an option -> fields of one item. class_names: field -> names of the run's classes."""
        raise NotImplementedError

    def output_size(self, fields: Fields, sr_factor: int) -> tuple[int, int] | None:
        """Height and width of the image that the fields of one item determine, if they do."""
        return None


# ---- shared by several conditions


def mask_concat(x: Tensor, drop: Tensor) -> Cond:
    """Concatenated channels [B, C, h, w], zero for hidden samples."""
    return Cond(concat=x.masked_fill(drop[:, None, None, None], 0))


def read_image(option: str, path: str) -> Tensor:
    """An image file as uint8 [H, W, 3]; UserError that names the option if it cannot be read."""
    try:
        return torch.from_numpy(np.array(open_image(path)))
    except BadImage as error:
        raise UserError(f"--{option} {path} {error}") from None


def read_classes(option: str, path: str, read: Callable[[], np.ndarray], field: str, classes: int) -> np.ndarray:
    """The array that read() returns, if every class number in it is below `classes`."""
    try:
        value = read()
        check_classes(field, value, classes)
    except BadImage as error:
        raise UserError(f"--{option} {path}: {error}") from None
    return value


def option_name(name: str) -> str:
    """low_res -> --low-res."""
    return "--" + name.replace("_", "-")


def output_size(conditions: Sequence[ConditionConfig], fields: Fields, sr_factor: int) -> tuple[int, int] | None:
    """The image size that the conditions determine: of the first one that returns a size; None if none does."""
    sizes = (condition.output_size(fields, sr_factor) for condition in conditions)
    return next((size for size in sizes if size), None)
