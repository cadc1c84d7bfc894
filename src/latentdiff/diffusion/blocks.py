"""Layers of the U-Net. All are called as layer(h, emb, cond) and ignore the arguments that they do not need."""

import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff.conditioning.cond import Cond
from latentdiff.layers import Attention, KVCache, attention, sincos_pos_embed_2d, to_image, to_tokens, zero_module


class TimestepSequential(nn.ModuleDict):
    """Named layers, applied in order."""

    def forward(self, h: Tensor, emb: Tensor, cond: Cond) -> Tensor:
        for layer in self.values():
            h = layer(h, emb, cond)
        return h


def resize_like(h: Tensor, skip: Tensor) -> Tensor:
    """h at the size of skip, which differs by one where an odd side was downsampled and upsampled."""
    return h if h.shape[2:] == skip.shape[2:] else F.interpolate(h, size=skip.shape[2:], mode="nearest")


class ResBlock(nn.Module):
    """Two convolutions and a skip, with the time embedding added or, with scale_shift, as scale and shift of norm2.

    resample: a layer without parameters that changes the size, in both paths.
    """

    def __init__(
        self, c_in: int, c_out: int, c_emb: int, groups: int, dropout: float = 0.0, scale_shift: bool = False,
        resample: nn.Module | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample or nn.Identity()
        self.norm1 = nn.GroupNorm(groups, c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.emb = nn.Linear(c_emb, 2 * c_out if scale_shift else c_out)
        self.norm2 = nn.GroupNorm(groups, c_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_module(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, emb: Tensor, cond: Cond) -> Tensor:
        h = self.conv1(self.resample(F.silu(self.norm1(x))))  # [B, c_out, h', w']
        emb = self.emb(emb)[:, :, None, None]  # [B, c_out or 2·c_out, 1, 1]
        if self.scale_shift:
            scale, shift = emb.chunk(2, dim=1)  # [B, c_out, 1, 1] each
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + emb)
        return self.skip(self.resample(x)) + self.conv2(self.dropout(F.silu(h)))  # [B, c_out, h', w']


class SelfAttention(nn.Module):
    """Self-attention over the positions of an image, with a skip: the attention of a U-Net without context."""

    def __init__(self, c: int, heads: int, groups: int, pos_embed: bool = False) -> None:
        super().__init__()
        self.heads, self.pos_embed = heads, pos_embed
        self.norm = nn.GroupNorm(groups, c)
        self.qkv = nn.Linear(c, 3 * c)
        self.out = zero_module(nn.Linear(c, c))

    def forward(self, x: Tensor, emb: Tensor, cond: Cond) -> Tensor:
        tokens = to_tokens(self.norm(x))  # [B, h·w, C]
        if self.pos_embed:
            tokens = tokens + sincos_pos_embed_2d(*x.shape[2:], x.shape[1], like=tokens)
        q, k, v = self.qkv(tokens).chunk(3, dim=-1)  # [B, h·w, C] each
        return x + to_image(self.out(attention(q, k, v, self.heads)), *x.shape[2:])  # [B, C, h, w]


class Transformer(nn.Module):
    """Transformer blocks over the positions of an image and the context, with a skip (table 16, as released)."""

    def __init__(
        self, c: int, heads: int, context_dim: int, depth: int, groups: int, pos_embed: bool = False
    ) -> None:  # fmt: skip
        super().__init__()
        self.pos_embed = pos_embed
        self.norm = nn.GroupNorm(groups, c, eps=1e-6)
        self.proj_in = nn.Linear(c, c)
        self.blocks = nn.ModuleList(TransformerBlock(c, heads, context_dim) for _ in range(depth))
        self.proj_out = zero_module(nn.Linear(c, c))

    def forward(self, x: Tensor, emb: Tensor, cond: Cond) -> Tensor:
        tokens = self.proj_in(to_tokens(self.norm(x)))  # [B, h·w, C]
        if self.pos_embed:
            tokens = tokens + sincos_pos_embed_2d(*x.shape[2:], x.shape[1], like=tokens)
        for block in self.blocks:
            tokens = block(tokens, cond.context, cond.context_mask)
        return x + to_image(self.proj_out(tokens), *x.shape[2:])  # [B, C, h, w]


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention (paper, sec. 3.3) and feed-forward, each after a LayerNorm and with a skip."""

    def __init__(self, width: int, heads: int, context_dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.attn1 = Attention(width, heads, width // heads, width)
        self.attn2 = Attention(width, heads, width // heads, context_dim, gain=1.0)
        self.ff = GEGLU(width)

    def forward(self, x: Tensor, context: Tensor | KVCache, mask: Tensor | None) -> Tensor:
        h = self.norm1(x)
        x = x + self.attn1(h, h)
        x = x + self.attn2(self.norm2(x), context, mask)
        return x + self.ff(self.norm3(x))


class GEGLU(nn.Module):
    """Feed-forward with a GELU gate and a hidden width of 4·width (Shazeer 2020)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 8 * width)  # values, then gates
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        weights, biases = self.fc1.weight.chunk(2), self.fc1.bias.chunk(2)
        value, gate = map(F.linear, (x, x), weights, biases)  # contiguous, unlike chunks of one product: 3 % faster
        return self.fc2(value * F.gelu(gate))  # [B, N, width]


class Downsample(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, stride=2, padding=1)

    def forward(self, h: Tensor, emb: Tensor, cond: Cond) -> Tensor:
        return self.conv(h)  # [B, C, h/2, w/2], odd sides rounded up


class Upsample(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, h: Tensor, emb: Tensor, cond: Cond) -> Tensor:
        return self.conv(F.interpolate(h, scale_factor=2.0, mode="nearest"))  # [B, C, 2h, 2w]
