"""A condition that others computed: it goes through its door as it is."""

from dataclasses import dataclass

from torch import Tensor, nn

from latentdiff.conditioning.cond import Cond
from latentdiff.config import UserError


@dataclass(frozen=True)
class PrecomputedConfig:
    input: str = "context"  # the field that is read, and where it goes: context, concat or vector
    dim: int = 768  # width of its tokens (context) or of the vector; channels (concat)


class PrecomputedCondition(nn.Module):
    """batch["context"] [B, L, size], ["concat"] [B, size, h, w] or ["vector"] [B, size] -> Cond. Never hidden."""

    dropout = 0.0

    def __init__(self, config: PrecomputedConfig) -> None:
        super().__init__()
        if config.input not in ("context", "concat", "vector"):
            raise UserError(f"the door of a given condition is {config.input!r}; it can be context, concat or vector")
        self.door = config.input
        self.context_dim = config.dim if config.input == "context" else 0
        self.concat_channels = config.dim if config.input == "concat" else 0
        self.vector_dim = config.dim if config.input == "vector" else 0

    def forward(self, batch: dict, drop: Tensor) -> Cond:
        if self.door not in batch:
            raise UserError(f"this run reads a {self.door} that was computed elsewhere, and nothing here computes one")
        mask = batch.get("context_mask") if self.door == "context" else None
        return Cond(**{self.door: batch[self.door]}, context_mask=mask)
