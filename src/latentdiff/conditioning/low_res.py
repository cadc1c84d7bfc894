"""A low-resolution image, concatenated to z_t along the channels: super-resolution (paper, sec. 4.4)."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from latentdiff.conditioning.cond import Cond
from latentdiff.conditioning.condition import BuildContext, ConditionConfig, ConditionModule, mask_concat, read_image
from latentdiff.layers import images_to_float


@dataclass(frozen=True)
class LowResConfig(ConditionConfig):
    dropout: float = 0.0  # fraction of low-resolution images dropped in training, for classifier-free guidance

    reads = ("low_res",)

    def build(self, context: BuildContext) -> "LowResCondition":
        return LowResCondition(self, context.sr_factor / context.factor)

    def inputs(self) -> dict[str, str]:
        return {"low_res": "the low-resolution image"}

    def read_input(self, option: str, value: str, class_names: dict[str, list[str]]) -> dict[str, Tensor]:
        return {"low_res": read_image("low-res", value)}

    def output_size(self, fields: dict, sr_factor: int) -> tuple[int, int] | None:
        return tuple(sr_factor * side for side in fields["low_res"].shape[:2]) if "low_res" in fields else None


class LowResCondition(ConditionModule):
    """batch["low_res"] uint8 [B, H / sr_factor, W / sr_factor, 3] -> concat [B, 3, h, w] in [-1, 1].

    ratio: height of the latent over that of the low-resolution image; at 1, as in the paper, the image is not resized.
    """

    reads = LowResConfig.reads
    concat_channels = 3

    def __init__(self, config: LowResConfig, ratio: float) -> None:
        super().__init__()
        self.dropout, self.ratio = config.dropout, ratio

    def forward(self, batch: dict[str, Tensor], drop: Tensor) -> Cond:
        x = images_to_float(batch["low_res"])  # [B, 3, H / sr_factor, W / sr_factor]
        if self.ratio != 1:
            x = F.interpolate(x, scale_factor=self.ratio, mode="bicubic", antialias=True).clamp(-1, 1)  # [B, 3, h, w]
        return mask_concat(x, drop)
