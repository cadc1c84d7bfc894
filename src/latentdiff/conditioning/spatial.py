"""Conditions that are pictures themselves, joined to z_t along the channels (paper, sec. 4.3.2, 4.4 and 4.5)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff.conditioning.cond import Cond

Encode = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SemanticConfig:
    classes: int = 182  # of the map, numbered 0 to classes - 1
    channels: int = 3  # that a map becomes
    dropout: float = 0.0  # share of maps hidden in training, for classifier-free guidance


@dataclass(frozen=True)
class LowResConfig:
    dropout: float = 0.0  # share of small pictures hidden in training, for classifier-free guidance


@dataclass(frozen=True)
class MaskedConfig:
    dropout: float = 0.0  # share of masked pictures hidden in training, for classifier-free guidance
    every_pixel: bool = False  # of mask and picture, 4 factor² channels; the original shows one of a cell, of the mask


class SemanticCondition(nn.Module):
    """batch["segmentation"] int [B, H, W] -> concat [B, channels, h, w].

    The original maps the classes one-hot, halves the map bilinearly until it has the latent's size, and applies a 1x1
    convolution. All of it is linear, so the convolution may come first: then it is a look-up, and no map of 182
    channels is ever made. Halving an even side bilinearly is the mean of pairs.
    """

    context_dim = 0
    vector_dim = 0

    def __init__(self, config: SemanticConfig, factor: int) -> None:
        super().__init__()
        self.dropout, self.concat_channels, self.factor = config.dropout, config.channels, factor
        self.channel_mapper = nn.Conv2d(config.classes, config.channels, 1, bias=False)
        nn.init.normal_(self.channel_mapper.weight)  # what it reads is one-hot: an embedding

    def forward(self, batch: dict, drop: Tensor) -> Cond:
        rows = self.channel_mapper.weight[:, :, 0, 0].T  # [classes, channels]
        x = F.embedding(batch["segmentation"].long(), rows).permute(0, 3, 1, 2)  # [B, channels, H, W]
        return _shown(F.avg_pool2d(x, self.factor), drop)


class LowResCondition(nn.Module):
    """batch["low_res"] uint8 [B, H / scale, W / scale, 3] -> concat [B, 3, h, w] in [-1, 1]; ratio: h per its height.

    Where it has the latent's size already, as in the paper, it is used as it is.
    """

    concat_channels = 3
    context_dim = 0
    vector_dim = 0

    def __init__(self, config: LowResConfig, ratio: float) -> None:
        super().__init__()
        self.dropout, self.ratio = config.dropout, ratio

    def forward(self, batch: dict, drop: Tensor) -> Cond:
        x = to_signed(batch["low_res"])
        if self.ratio != 1:
            x = F.interpolate(x, scale_factor=self.ratio, mode="bicubic", antialias=True).clamp(-1, 1)
        return _shown(x, drop)


class MaskedCondition(nn.Module):
    """batch["image"] uint8 [B, H, W, 3], batch["mask"] [B, H, W], 1 where to fill -> concat [B, C + m, h, w].

    The latent of the picture with black in the hole, and the mask in [-1, 1] at the latent's size: the top left pixel
    of each cell, m = 1 (original release, scripts/inpaint.py), or all its pixels, with those of the picture, grey in
    the hole, m = 4 factor²: a latent blurs what little may be left of an object. `encode` must be a
    plain function, such as a lambda: a bound method would drag a copy of the autoencoder into every copy of this
    module, its average above all.
    """

    context_dim = 0
    vector_dim = 0

    def __init__(self, config: MaskedConfig, z_channels: int, factor: int, encode: Encode) -> None:
        super().__init__()
        self.dropout, self.every_pixel = config.dropout, config.every_pixel
        self.concat_channels = z_channels + (4 * factor**2 if config.every_pixel else 1)
        self.encode, self.factor = encode, factor

    def forward(self, batch: dict, drop: Tensor) -> Cond:
        mask, image = (batch["mask"] > 0)[:, None], to_signed(batch["image"])  # [B, 1 or 3, H, W]
        with torch.no_grad():
            z = self.encode(image.masked_fill(mask, -1))
        shown = mask.to(z.dtype) * 2 - 1
        if self.every_pixel:
            shown = F.pixel_unshuffle(torch.cat([shown, image.masked_fill(mask, 0).to(z.dtype)], dim=1), self.factor)
        else:
            shown = shown[:, :, :: self.factor, :: self.factor]
        return _shown(torch.cat([z, shown], dim=1), drop)


def _shown(x: Tensor, drop: Tensor) -> Cond:
    """The channels, zeros for the samples from which they are hidden."""
    return Cond(concat=x.masked_fill(drop[:, None, None, None], 0))


def to_signed(images: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] -> float [B, 3, H, W] in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1
