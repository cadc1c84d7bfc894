"""A large picture as overlapping tiles, put together again with weights that sum to one at every place."""

from collections.abc import Callable

import torch
from torch import Tensor


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
