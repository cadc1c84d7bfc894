"""A masked image and its mask, concatenated to z_t along the channels: inpainting (paper, sec. 4.5)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from latentdiff.conditioning.cond import Cond
from latentdiff.conditioning.condition import BuildContext, ConditionConfig, ConditionModule, mask_concat, read_image
from latentdiff.config import UserError
from latentdiff.layers import images_to_float


@dataclass(frozen=True)
class MaskedConfig(ConditionConfig):
    dropout: float = 0.0  # fraction of masked images dropped in training, for classifier-free guidance
    every_pixel: bool = False  # add all pixels of mask and image, 4 factor² channels; the original adds the mask alone

    reads = ("image", "mask")

    def build(self, context: BuildContext) -> "MaskedCondition":
        return MaskedCondition(self, context.z_channels, context.factor, context.encode)

    def inputs(self) -> dict[str, str]:
        return {"image": "the image to inpaint", "mask": "an image of the same size, white where to inpaint"}

    def read_input(self, option: str, value: str, class_names: dict[str, list[str]]) -> dict[str, Tensor]:
        if option == "image":
            return {"image": read_image(option, value)}
        mask = read_image(option, value).float().mean(dim=2) > 127
        if not mask.any():
            raise UserError(f"--mask {value} is black everywhere; it must be white in the region to inpaint")
        return {"mask": mask.to(torch.uint8)}

    def output_size(self, fields: dict, sr_factor: int) -> tuple[int, int] | None:
        return tuple(fields["image"].shape[:2]) if "image" in fields else None


class MaskedCondition(ConditionModule):
    """batch["image"] uint8 [B, H, W, 3], batch["mask"] [B, H, W] (1: inpaint) -> concat [B, z_channels + m, h, w].

    The channels are the latent of the image with black in the masked region, and the mask in [-1, 1] at the size of the
    latent: the top left pixel of each position, m = 1 (original release, scripts/inpaint.py), or with every_pixel all
    pixels of mask and image (gray in the masked region), m = 4 factor², since a latent blurs small visible details.
    `encode` must be a plain function such as a lambda: a bound method would be deep-copied with the autoencoder into
    every copy of this module, such as its EMA.
    """

    reads = MaskedConfig.reads

    def __init__(
        self, config: MaskedConfig, z_channels: int, factor: int, encode: Callable[[Tensor], Tensor]
    ) -> None:  # fmt: skip
        super().__init__()
        self.dropout, self.every_pixel = config.dropout, config.every_pixel
        self.concat_channels = z_channels + (4 * factor**2 if config.every_pixel else 1)
        self.encode, self.factor = encode, factor

    def forward(self, batch: dict[str, Tensor], drop: Tensor) -> Cond:
        mask, image = (batch["mask"] > 0)[:, None], images_to_float(batch["image"])  # [B, 1, H, W], [B, 3, H, W]
        with torch.no_grad():
            z = self.encode(image.masked_fill(mask, -1))  # [B, z_channels, h, w]
        channels = mask.to(z.dtype) * 2 - 1
        if self.every_pixel:
            channels = torch.cat([channels, image.masked_fill(mask, 0).to(z.dtype)], dim=1)  # [B, 4, H, W]
            channels = F.pixel_unshuffle(channels, self.factor)  # [B, 4 factor², h, w]
        else:
            channels = channels[:, :, :: self.factor, :: self.factor]  # [B, 1, h, w]
        return mask_concat(torch.cat([z, channels], dim=1), drop)
