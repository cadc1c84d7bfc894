"""Functions both networks share: attention, tokens <-> image, embeddings of time and place, initialisation."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Vaswani et al. 2017, eq. 1: q [B, N, heads·d], k and v [B, L, heads·d] -> [B, N, heads·d].

    mask: bool [B, L], True where a key may be attended to; every row keeps at least one.
    Measured: on CPUs bf16 attention is 2 to 14 times slower than fp32 with its backward pass; alone it is, for large
    pictures, twice as fast where the CPU multiplies tiles (AMX).
    """
    # [B, heads, N or L, d]: the fused kernels take nothing but four dimensions
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    if mask is not None:
        mask = mask[:, None, None, :]
    if q.device.type == "cpu" and (q.requires_grad or not _cpu_has_tiles()):
        with torch.autocast("cpu", enabled=False):
            wide = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (q, k, v))
            h = F.scaled_dot_product_attention(*wide, attn_mask=mask).to(q.dtype)
    else:
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return h.transpose(1, 2).flatten(2)


def _cpu_has_tiles() -> bool:
    return hasattr(torch.cpu, "_is_amx_tile_supported") and torch.cpu._is_amx_tile_supported()


class Attention(nn.Module):
    """Multi-head attention of tokens [B, N, width] to a context [B, L, context_width] -> [B, N, width].

    gain: the standard deviation at which queries and keys of normed input start. torch's default, 0.58, attends to
    everything alike, and what is to be told apart is then learnt late or never.
    """

    def __init__(self, width: int, heads: int, head_dim: int, context_width: int, gain: float | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, heads * head_dim, bias=False)
        self.k = nn.Linear(context_width, heads * head_dim, bias=False)
        self.v = nn.Linear(context_width, heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width)
        if gain is not None:
            nn.init.normal_(self.q.weight, std=gain * width**-0.5)
            nn.init.normal_(self.k.weight, std=gain * context_width**-0.5)

    def forward(self, tokens: Tensor, context: "Tensor | KVCache", mask: Tensor | None = None) -> Tensor:
        k, v = self.hold(context) if isinstance(context, Tensor) else context[self]
        return self.out(attention(self.q(tokens), k, v, self.heads, mask))

    def hold(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values of a context, which are the same at every step of a sampler."""
        return self.k(context), self.v(context)


KVCache = dict[nn.Module, tuple[Tensor, Tensor]]  # keys and values of a context for each attention to it


def to_tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2).contiguous()  # [B, C, h, w] -> [B, h·w, C]; fused attention takes no others


def to_image(tokens: Tensor, height: int, width: int) -> Tensor:
    return tokens.transpose(1, 2).unflatten(2, (height, width))  # [B, h·w, C] -> [B, C, h, w]


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """Sinusoids of t [B] at width / 2 frequencies, cosines first, as the original release: float32 [B, width]."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t.float()[:, None] * frequencies
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, width % 2))


def sincos_pos_embed_2d(height: int, width: int, channels: int, like: Tensor) -> Tensor:
    """Sines of y and x, from half a turn to four turns across the picture: [h·w, channels], on the device of `like`.

    Places are shares of the picture, so that "above" means the same at any size; channels must divide by 4.
    """
    turns = math.pi * 2.0 ** (3 * torch.arange(channels // 4, device=like.device) / (channels // 4))
    y, x = (((torch.arange(n, device=like.device) + 0.5) / n)[:, None] * turns for n in (height, width))
    rows, columns = (torch.cat([angles.cos(), angles.sin()], dim=1) for angles in (y, x))  # [h or w, channels / 2]
    both = rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)
    return torch.cat(both, dim=-1).flatten(0, 1).to(like.dtype)


def zero(module: nn.Module) -> nn.Module:
    """The module with every parameter at zero: a residual branch that starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def cast_weights(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module with the weights of its products in the type that autocast would cast them to, at half the memory.

    For networks that train no more: autocast remembers its casts only of weights that want a gradient, and casts all
    others at every call. What is computed stays the same, bit for bit.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            part.to(dtype)
    return module


# ---- tiles


def windows(length: int, tile: int, overlap: int, scale: int = 1, shift: float = 0.0) -> list[tuple[slice, Tensor]]:
    """Where the tiles along one side lie, and the weight of each of their places: the weights over any place sum to 1.

    As few tiles as overlap by at least `overlap`, spread evenly and cut from 0..length; weights fall linearly towards
    a tile's ends. The weights are for a result `scale` times as long as what is cut. shift: the share of the way to
    their next, below 1, by which all lie further up; those beyond an end lie at it.
    """
    tile = min(tile, length)
    count = max(1, -(-(length - overlap) // (tile - overlap))) if tile < length else 1
    stride = (length - tile) / max(1, count - 1)
    places = (round((i - shift) * stride) for i in range(count + (shift > 0)))
    starts = list(dict.fromkeys(min(max(place, 0), length - tile) for place in places))
    inside = torch.arange(tile * scale, dtype=torch.float64) + 0.5
    ramp = torch.minimum(inside, tile * scale - inside).clamp(max=max(1, overlap * scale))
    total = torch.zeros(length * scale, dtype=torch.float64)
    for start in starts:
        total[start * scale : (start + tile) * scale] += ramp
    return [(slice(s, s + tile), (ramp / total[s * scale : (s + tile) * scale]).float()) for s in starts]


def blend(
    function: Callable[[slice, slice], Tensor],
    height: int,
    width: int,
    tile: int,
    overlap: int,
    scale: int = 1,
    shift: float = 0.0,
) -> Tensor:
    """The picture [B, C, height·scale, width·scale] of which function(rows, columns) makes a tile at a time."""
    assert 0 <= overlap < tile, f"tiles of {tile} cannot overlap by {overlap}"
    out = None
    for rows, down in windows(height, tile, overlap, scale, shift):
        for columns, across in windows(width, tile, overlap, scale, shift):
            piece = function(rows, columns)
            if out is None:
                out = piece.new_zeros(*piece.shape[:2], height * scale, width * scale)
            y, x = (slice(s.start * scale, s.stop * scale) for s in (rows, columns))
            out[:, :, y, x] += piece * (down[:, None] * across).to(piece)
    return out
