"""The conditioner: all conditions of a model, joined into the three inputs of the U-Net."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from latentdiff import rng
from latentdiff.conditioning.cond import Cond
from latentdiff.conditioning.condition import ConditionModule, Fields
from latentdiff.conditioning.text import TextCondition
from latentdiff.config import UserError
from latentdiff.data.loader import to_device
from latentdiff.data.tokenizer import CaptionTokenizer


class Conditioner(nn.Module):
    """Joins the Cond of each condition with `|`; without conditions the result is an empty Cond."""

    def __init__(self, parts: Sequence[ConditionModule]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.context_dim = self._common_width("context_dim")
        self.vector_dim = self._common_width("vector_dim")
        self.concat_channels = sum(part.concat_channels for part in parts)
        self.can_drop = any(part.dropout > 0 for part in parts)

    @property
    def tokenizer(self) -> CaptionTokenizer | None:
        """The tokenizer of the Text condition, if there is one."""
        return next((part.tokenizer for part in self.parts if isinstance(part, TextCondition)), None)

    def prepare(self, batch: Fields, device: torch.device, strict: bool = False) -> dict[str, Tensor]:
        """The fields of a data batch as the tensors that `forward` reads, on the device (see ConditionModule)."""
        fields = {name: x for part in self.parts for name, x in part.prepare(batch, strict).items()}
        return {name: to_device(x, device) for name, x in fields.items()}

    def forward(self, batch: dict[str, Tensor], drop: Tensor | Sequence[Tensor]) -> Cond:
        """Prepared fields -> Cond.

        Args:
            batch: what `prepare` returned.
            drop: bool [B] per condition, True where it is hidden; or one bool [B] for all conditions with dropout
                (a low-resolution or masked image without dropout is then never hidden).
        """
        if isinstance(drop, Tensor):
            drop = [drop if part.dropout > 0 else torch.zeros_like(drop) for part in self.parts]
        cond = Cond()
        for part, hidden in zip(self.parts, drop, strict=True):
            cond = cond | part(batch, hidden)
        return cond

    def sample_drops(self, keys: Tensor) -> list[Tensor]:
        """keys [B] -> bool [B] per condition, each sampled independently with the condition's dropout."""
        u = rng.uniform(keys, (max(1, len(self.parts)),))  # [B, conditions]
        return [u[:, i] < part.dropout for i, part in enumerate(self.parts)]

    def _common_width(self, name: str) -> int:
        """The width of an input of the U-Net that several conditions use; it must be the same for all of them."""
        widths = sorted({getattr(part, name) for part in self.parts} - {0})
        if len(widths) > 1:
            raise UserError(f"conditions differ in {name}: {widths}; set the same dim for all of them")
        return widths[0] if widths else 0
