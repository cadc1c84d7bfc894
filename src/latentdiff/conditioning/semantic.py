"""A semantic map, concatenated to z_t along the channels (paper, sec. 4.3.2)."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff.conditioning.cond import Cond
from latentdiff.conditioning.condition import BuildContext, ConditionConfig, ConditionModule, mask_concat, read_classes
from latentdiff.data import fields


@dataclass(frozen=True)
class SemanticConfig(ConditionConfig):
    classes: int = 182  # of the map, numbered 0 to classes - 1
    channels: int = 3  # that the map is projected to
    dropout: float = 0.0  # fraction of maps dropped in training, for classifier-free guidance

    reads = ("segmentation",)

    @property
    def num_classes(self) -> dict[str, int]:
        return {"segmentation": self.classes}

    def build(self, context: BuildContext) -> "SemanticCondition":
        return SemanticCondition(self, context.factor)

    def inputs(self) -> dict[str, str]:
        return {"segmentation": f"a map: an image of class numbers from 0 to {self.classes - 1}"}

    def read_input(self, option: str, value: str, class_names: dict[str, list[str]]) -> dict[str, Tensor]:
        read = lambda: np.asarray(fields.open_map(value))  # noqa: E731
        return {"segmentation": torch.from_numpy(read_classes(option, value, read, option, self.classes).copy())}

    def output_size(self, fields: dict, sr_factor: int) -> tuple[int, int] | None:
        return tuple(fields["segmentation"].shape[:2]) if "segmentation" in fields else None


class SemanticCondition(ConditionModule):
    """batch["segmentation"] int [B, H, W] -> concat [B, channels, h, w].

    The original release maps the classes one-hot, halves the map bilinearly until it has the size of the latent and
    applies a 1x1 convolution. All of it is linear, so the convolution may come first: it is then an embedding, and no
    one-hot map is needed. Halving an even side bilinearly is the mean of pairs.
    """

    reads = SemanticConfig.reads

    def __init__(self, config: SemanticConfig, factor: int) -> None:
        super().__init__()
        self.dropout, self.concat_channels, self.factor = config.dropout, config.channels, factor
        self.channel_mapper = nn.Conv2d(config.classes, config.channels, 1, bias=False)
        nn.init.normal_(self.channel_mapper.weight)  # its input is one-hot: an embedding

    def forward(self, batch: dict[str, Tensor], drop: Tensor) -> Cond:
        table = self.channel_mapper.weight[:, :, 0, 0].T  # [classes, channels]
        x = F.embedding(batch["segmentation"].long(), table).permute(0, 3, 1, 2)  # [B, channels, H, W]
        return mask_concat(F.avg_pool2d(x, self.factor), drop)  # [B, channels, h, w]
