"""Functions that several networks share: attention, embeddings, initialization, overlapping tiles."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def images_to_float(images: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] in [-1, 1]."""
    return images.permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def to_tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2).contiguous()  # [B, C, h, w] -> [B, h·w, C]; fused attention needs contiguous


def to_image(tokens: Tensor, height: int, width: int) -> Tensor:
    return tokens.transpose(1, 2).unflatten(2, (height, width))  # [B, h·w, C] -> [B, C, h, w]


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Multi-head attention (Vaswani et al. 2017, eq. 1): q [B, N, heads·d], k and v [B, L, heads·d] -> [B, N, heads·d].

    mask: bool [B, L], True where a key may be attended to; at least one key per sample.
    """
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # [B, heads, N or L, d]
    if mask is not None:
        mask = mask[:, None, None, :]  # [B, 1, 1, L]
    if q.device.type == "cpu" and (q.requires_grad or not _cpu_has_amx()):  # bf16 is 2 to 14 times slower than float32
        with torch.autocast("cpu", enabled=False):
            q32, k32, v32 = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (q, k, v))
            h = F.scaled_dot_product_attention(q32, k32, v32, attn_mask=mask).to(q.dtype)
    else:
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return h.transpose(1, 2).flatten(2)  # [B, N, heads·d]


def _cpu_has_amx() -> bool:
    return hasattr(torch.cpu, "_is_amx_tile_supported") and torch.cpu._is_amx_tile_supported()


class Attention(nn.Module):
    """Multi-head attention of tokens [B, N, width] to a context [B, L, context_width]: [B, N, width].

    `gain` is the standard deviation of queries and keys at initialization, if the inputs are normalized. PyTorch's
    default corresponds to 0.58: all keys are attended to almost equally, and are told apart late or never.
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
        k, v = self.project_kv(context) if isinstance(context, Tensor) else context[self]  # [B, L, heads·head_dim]
        return self.out(attention(self.q(tokens), k, v, self.heads, mask))  # [B, N, width]

    def project_kv(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a context; a sampler computes them once, because they are the same at every step."""
        return self.k(context), self.v(context)


KVCache = dict[nn.Module, tuple[Tensor, Tensor]]  # attention layer -> keys and values of the context


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding of t [B], cosines first as in the original release: float32 [B, width]."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t.float()[:, None] * frequencies  # [B, half]
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, width % 2))  # [B, width]


def sincos_pos_embed_2d(height: int, width: int, channels: int, like: Tensor) -> Tensor:
    """Sinusoidal embedding of relative positions, y in the first half of the channels and x in the second.

    From half a period to four periods per side at any resolution; `channels` must be a multiple of 4.

    Returns: [height·width, channels] with the device and dtype of `like`.
    """
    frequencies = math.pi * 2.0 ** (3 * torch.arange(channels // 4, device=like.device) / (channels // 4))
    y, x = (((torch.arange(n, device=like.device) + 0.5) / n)[:, None] * frequencies for n in (height, width))
    y, x = (torch.cat([angles.cos(), angles.sin()], dim=1) for angles in (y, x))  # [h or w, channels / 2]
    both = y[:, None].expand(-1, width, -1), x[None].expand(height, -1, -1)  # [h, w, channels / 2] each
    return torch.cat(both, dim=-1).flatten(0, 1).to(like.dtype)  # [h·w, channels]


def zero_module(module: nn.Module) -> nn.Module:
    """Set all parameters to zero, so that a residual branch starts as the identity; returns the module."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def cast_weights(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast the weights of linear and convolution layers to the dtype of autocast; returns the module.

    For inference: autocast caches its casts only of weights that require a gradient. The outputs stay bit-identical.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.to(dtype)
    return module


# ---- tiles


def windows(length: int, tile: int, overlap: int, scale: int = 1, offset: float = 0.0) -> list[tuple[slice, Tensor]]:
    """Overlapping tiles along one axis, with blending weights that sum to 1 at every position.

    As few tiles as possible cover 0..length evenly, with at least `overlap`, over which the weights rise linearly.

    Args:
        scale: size of the output per size of the input.
        offset: shift of all tiles towards 0, as a fraction (below 1) of their stride.

    Returns: for each tile its slice of the input and its weights [tile·scale] for the output.
    """
    tile = min(tile, length)
    count = max(1, -(-(length - overlap) // (tile - overlap))) if tile < length else 1
    stride = (length - tile) / max(1, count - 1)
    starts = (round((i - offset) * stride) for i in range(count + (offset > 0)))
    starts = list(dict.fromkeys(min(max(start, 0), length - tile) for start in starts))
    centers = torch.arange(tile * scale, dtype=torch.float64) + 0.5
    ramp = torch.minimum(centers, tile * scale - centers).clamp(max=max(1, overlap * scale))
    total = torch.zeros(length * scale, dtype=torch.float64)
    for start in starts:
        total[start * scale : (start + tile) * scale] += ramp
    return [(slice(s, s + tile), (ramp / total[s * scale : (s + tile) * scale]).float()) for s in starts]


def blend(
    function: Callable[[slice, slice], Tensor], height: int, width: int, tile: int, overlap: int, scale: int = 1,
    offset: float = 0.0,
) -> Tensor:  # fmt: skip
    """The output [B, C, height·scale, width·scale] of function(rows, columns) -> tile, blended as in `windows`."""
    assert 0 <= overlap < tile, f"tiles of {tile} cannot overlap by {overlap}"
    out = None
    for rows, weights_y in windows(height, tile, overlap, scale, offset):
        for columns, weights_x in windows(width, tile, overlap, scale, offset):
            y = function(rows, columns)
            if out is None:
                out = y.new_zeros(*y.shape[:2], height * scale, width * scale)
            top, left = rows.start * scale, columns.start * scale
            weights = (weights_y[:, None] * weights_x).to(y)  # [tile·scale, tile·scale]
            out[:, :, top : top + y.shape[2], left : left + y.shape[3]] += y * weights
    return out
