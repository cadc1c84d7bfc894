"""A class label as one learned vector: a context of one token, or added to the timestep embedding."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latentdiff.conditioning.cond import Cond
from latentdiff.conditioning.condition import BuildContext, ConditionConfig, ConditionModule
from latentdiff.config import UserError


@dataclass(frozen=True)
class LabelConfig(ConditionConfig):
    classes: int = 1000  # labels are 0 to classes - 1
    dim: int = 512  # width of the embedding of a class
    dropout: float = 0.1  # fraction of labels dropped in training, for classifier-free guidance; 0: no empty class
    input: str = "context"  # of the U-Net: context (cross-attention, as in the paper) or vector (timestep embedding)

    reads = ("label",)
    reads_files = False

    @property
    def num_classes(self) -> dict[str, int]:
        return {"label": self.classes}

    def build(self, context: BuildContext) -> "LabelCondition":
        return LabelCondition(self)

    def inputs(self) -> dict[str, str]:
        return {"class": f"a class: a number from 0 to {self.classes - 1}, or its name"}

    def read_input(self, option: str, value: str, class_names: dict[str, list[str]]) -> dict[str, Tensor]:
        names = class_names.get("label", [])
        number = names.index(value) if value in names else int(value) if value.isdigit() else -1
        if not 0 <= number < self.classes:
            known = f", or one of {', '.join(names[: self.classes])}" if names else ""
            raise UserError(f"--class {value}: it must be a number from 0 to {self.classes - 1}{known}")
        return {"label": torch.tensor(number)}


class LabelCondition(ConditionModule):
    """batch["label"] int [B] -> context [B, 1, dim] or vector [B, dim]. A dropped label becomes the empty class."""

    reads = LabelConfig.reads

    def __init__(self, config: LabelConfig) -> None:
        super().__init__()
        if config.input not in ("context", "vector"):
            raise UserError(f"the input of a Label condition is {config.input!r}; it must be context or vector")
        self.dropout, self.classes, self.input = config.dropout, config.classes, config.input
        self.context_dim = config.dim if config.input == "context" else 0
        self.vector_dim = config.dim if config.input == "vector" else 0
        self.embedding = nn.Embedding(config.classes + (config.dropout > 0), config.dim)

    def forward(self, batch: dict[str, Tensor], drop: Tensor) -> Cond:
        label = batch["label"]
        if self.dropout > 0:
            label = torch.where(drop, self.classes, label)
        vector = self.embedding(label)  # [B, dim]
        return Cond(context=vector[:, None]) if self.input == "context" else Cond(vector=vector)
