"""The transformer of the U-Net as it is built in 2025: RMSNorm, even queries and keys, places as rotations, SwiGLU.

Takes the place of blocks.Transformer and blocks.SelfAttention alike, with `unet.blocks = modern`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff.conditioning.cond import Cond
from latentdiff.layers import Held, attention, place_embedding, to_image, to_tokens, zero

BASE = 100.0  # the longest wave of a place in radians; grids of latents are small


class ModernTransformer(nn.Module):
    """Every place attends to all places and, if there is one, to the context; with a skip."""

    def __init__(self, c: int, heads: int, context_dim: int | None, depth: int, positions: bool = False) -> None:
        super().__init__()
        assert c // heads % 4 == 0, f"a head of {c // heads} channels cannot hold two coordinates as rotations"
        self.head_dim, self.positions = c // heads, positions
        self.proj_in = nn.Linear(c, c)
        self.blocks = nn.ModuleList(ModernBlock(c, heads, context_dim) for _ in range(depth))
        self.norm = RMSNorm(c)
        self.proj_out = zero(nn.Linear(c, c))

    def forward(self, x: Tensor, emb: Tensor, cond: Cond) -> Tensor:
        tokens = self.proj_in(to_tokens(x))  # [B, h·w, C]
        if self.positions:  # rotations tell self-attention how far apart places are; a context asks where they are
            tokens = tokens + place_embedding(*x.shape[2:], x.shape[1], like=tokens)
        places = rotations(*x.shape[2:], self.head_dim, x.device)
        for block in self.blocks:
            tokens = block(tokens, places, cond.context, cond.context_mask)
        return x + to_image(self.proj_out(self.norm(tokens)), *x.shape[2:])


class ModernBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, each behind an RMSNorm (Zhang & Sennrich 2019) and a skip."""

    def __init__(self, width: int, heads: int, context_dim: int | None) -> None:
        super().__init__()
        self.norm1, self.norm3 = RMSNorm(width), RMSNorm(width)
        self.norm2 = RMSNorm(width) if context_dim else None
        self.attn1 = NormedAttention(width, heads, width)
        self.attn2 = NormedAttention(width, heads, context_dim) if context_dim else None
        self.ff = SwiGLU(width)

    def forward(self, x: Tensor, places: Tensor, context: Tensor | Held | None, mask: Tensor | None) -> Tensor:
        h = self.norm1(x)
        x = x + self.attn1(h, h, places=places)
        if self.attn2 is not None:
            x = x + self.attn2(self.norm2(x), context, mask)
        return x + self.ff(self.norm3(x))


class NormedAttention(nn.Module):
    """Attention whose queries and keys have one length, which keeps the logits in bounds (Henry et al. 2020)."""

    def __init__(self, width: int, heads: int, context_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width, bias=False)
        self.k, self.v = (nn.Linear(context_width, width, bias=False) for _ in range(2))
        self.norm_q, self.norm_k = (RMSNorm(width // heads) for _ in range(2))
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Tensor, context: Tensor | Held, mask: Tensor | None = None, places: Tensor | None = None
    ) -> Tensor:
        k, v = self.hold(context) if isinstance(context, Tensor) else context[self]
        q = self.norm_q(self.q(x).unflatten(-1, (self.heads, -1)))  # [B, N, heads, d]
        if places is not None:
            q, k = rotate(q, places), rotate(k, places)
        return self.out(attention(q.flatten(2).to(v.dtype), k.flatten(2).to(v.dtype), v, self.heads, mask))

    def hold(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys [B, L, heads, d] and values [B, L, width] of a context."""
        return self.norm_k(self.k(context).unflatten(-1, (self.heads, -1))), self.v(context)


class RMSNorm(nn.RMSNorm):
    """Computed in the type of its weights: the kernel wants one type, and autocast hands over another."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


class SwiGLU(nn.Module):
    """Feed-forward with a SiLU gate (Shazeer 2020), as many numbers as a plain one of four times the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inside = -(-8 * width // 24) * 8  # two thirds of four times the width, in multiples of 8
        self.wide = nn.Linear(width, 2 * inside)  # values, then gates
        self.narrow = nn.Linear(inside, width)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.wide(x).chunk(2, dim=-1)
        return self.narrow(value * F.silu(gate))


def rotations(height: int, width: int, dim: int, device: torch.device) -> Tensor:
    """The angles of every place of a grid, half of them by its row and half by its column: [h·w, 1, dim / 2]."""
    frequencies = BASE ** -(torch.arange(dim // 4, device=device) / (dim // 4))
    rows, columns = torch.meshgrid(*(torch.arange(n, device=device) for n in (height, width)), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], dim=1)  # [h·w, 2]
    return (places[:, :, None] * frequencies).flatten(1)[:, None]


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Pairs of x [B, N, heads, d] turned by angles [N, 1, d / 2] (Su et al. 2021, eq. 34): a product of two depends on
    the difference of their places alone."""
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
