"""A condition computed elsewhere: passed to the U-Net unchanged."""

from dataclasses import dataclass

from torch import Tensor

from latentdiff.conditioning.cond import Cond
from latentdiff.conditioning.condition import BuildContext, ConditionConfig, ConditionModule
from latentdiff.config import UserError


@dataclass(frozen=True)
class PrecomputedConfig(ConditionConfig):
    input: str = "context"  # the field that is read, and the input of the U-Net: context, concat or vector
    dim: int = 768  # width of the tokens (context) or of the vector; channels (concat)

    def build(self, context: BuildContext) -> "PrecomputedCondition":
        return PrecomputedCondition(self)


class PrecomputedCondition(ConditionModule):
    """batch["context"] [B, L, dim], ["concat"] [B, dim, h, w] or ["vector"] [B, dim] -> Cond; never dropped."""

    def __init__(self, config: PrecomputedConfig) -> None:
        super().__init__()
        if config.input not in ("context", "concat", "vector"):
            raise UserError(
                f"the input of a Precomputed condition is {config.input!r}; it must be context, concat or vector"
            )
        self.input = config.input
        self.context_dim = config.dim if config.input == "context" else 0
        self.concat_channels = config.dim if config.input == "concat" else 0
        self.vector_dim = config.dim if config.input == "vector" else 0

    def prepare(self, batch: dict, strict: bool = False) -> dict[str, Tensor]:
        return {name: batch[name] for name in (self.input, "context_mask") if name in batch}

    def forward(self, batch: dict[str, Tensor], drop: Tensor) -> Cond:
        if self.input not in batch:
            raise UserError(f"this run needs a precomputed {self.input}; pass it as a field, it is not computed here")
        mask = batch.get("context_mask") if self.input == "context" else None
        return Cond(**{self.input: batch[self.input]}, context_mask=mask)
