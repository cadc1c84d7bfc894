"""A class label as one learned vector: a context of one token, or added to the time embedding."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latentdiff.conditioning.cond import Cond
from latentdiff.config import UserError


@dataclass(frozen=True)
class LabelConfig:
    classes: int = 1000  # labels are 0 to classes - 1
    dim: int = 512  # width of the vector of a class
    dropout: float = 0.1  # share of labels hidden in training, for classifier-free guidance; 0: no vector for "hidden"
    input: str = "context"  # context (cross-attention, as in the paper) or vector (added to the time embedding)


class LabelCondition(nn.Module):
    """batch["label"] int [B] -> context [B, 1, dim] or vector [B, dim]. A hidden label is one more class."""

    concat_channels = 0

    def __init__(self, config: LabelConfig) -> None:
        super().__init__()
        if config.input not in ("context", "vector"):
            raise UserError(f"the door of a label is {config.input!r}; it can be context or vector")
        self.dropout, self.classes, self.door = config.dropout, config.classes, config.input
        self.context_dim = config.dim if config.input == "context" else 0
        self.vector_dim = config.dim if config.input == "vector" else 0
        self.embedding = nn.Embedding(config.classes + (config.dropout > 0), config.dim)

    def forward(self, batch: dict, drop: Tensor) -> Cond:
        label = batch["label"]
        if self.dropout > 0:
            label = torch.where(drop, self.classes, label)
        vector = self.embedding(label)  # [B, dim]
        return Cond(context=vector[:, None]) if self.door == "context" else Cond(vector=vector)
