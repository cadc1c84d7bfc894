"""Building blocks of encoder and decoder. Module names are those of the original state dict."""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff.layers import attention, to_image, to_tokens


def norm(groups: int, channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)  # the U-Net has 1e-5


class ResBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, groups: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = norm(groups, c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2 = norm(groups, c_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))  # [B, c_out, H, W]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.nin_shortcut(x) + h


class Attention(nn.Module):
    """Single-head self-attention over all positions; the linear maps are 1x1 convolutions, as in the original."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = norm(groups, channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        h = attention(*(to_tokens(linear(h)) for linear in (self.q, self.k, self.v)), heads=1)  # [B, H·W, C]
        return x + self.proj_out(to_image(h, *x.shape[2:]))  # [B, C, H, W]


class ResolutionLevel(nn.Module):
    """The blocks of one resolution; the encoder adds `downsample` to it, the decoder `upsample`."""

    def __init__(self, c_in: int, c_out: int, blocks: int, attend: bool, groups: int, dropout: float) -> None:
        super().__init__()
        widths = [c_in] + [c_out] * (blocks - 1)
        self.block = nn.ModuleList(ResBlock(c, c_out, groups, dropout) for c in widths)
        self.attn = nn.ModuleList(Attention(c_out, groups) if attend else nn.Identity() for _ in widths)

    def forward(self, x: Tensor) -> Tensor:
        for block, attn in zip(self.block, self.attn):
            x = attn(block(x))  # [B, c_out, H, W]
        return x


def middle_blocks(channels: int, attend: bool, groups: int, dropout: float) -> nn.Sequential:
    block_1 = ResBlock(channels, channels, groups, dropout)
    attn_1 = Attention(channels, groups) if attend else nn.Identity()
    block_2 = ResBlock(channels, channels, groups, dropout)
    return nn.Sequential(OrderedDict(block_1=block_1, attn_1=attn_1, block_2=block_2))


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # [B, C, H/2, W/2]; padded right and bottom only, as in the original


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))  # [B, C, 2H, 2W]
