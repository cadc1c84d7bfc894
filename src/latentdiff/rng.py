"""Randomness as a function of a key: the same key gives the same numbers on any rank, worker, batch size or restart.

A key is made from what the number is for, e.g. key(seed, step, position, "noise"). No generator state exists, so none
is saved, and a resumed run draws what an unbroken one would have drawn.
"""

import hashlib
import math

import torch
from torch import Tensor

GOLDEN = -7046029254386353131  # 2**64 / golden ratio, as a signed 64-bit integer (SplitMix64, Steele et al. 2014)


def key(*parts: int | str) -> int:
    """A 63-bit key out of any integers and words."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little") >> 1


def keys(seed: int, step: int, positions: range, what: str, device: torch.device | str = "cpu") -> Tensor:
    """One key per sample: positions in the global batch of `step` -> int64 [B]. The host waits for no device."""
    made = torch.tensor([key(seed, step, position, what) for position in positions], dtype=torch.int64)
    return made.to(device, non_blocking=True)


def bits(keys: Tensor, count: int) -> Tensor:
    """SplitMix64 over a counter: keys [B] -> int64 [B, count], every bit a fair coin."""
    x = keys[:, None] + GOLDEN * torch.arange(1, count + 1, device=keys.device)  # integers wrap, as intended
    x = (x ^ _shift(x, 30)) * -4658895280553007687
    x = (x ^ _shift(x, 27)) * -7723592293110705685
    return x ^ _shift(x, 31)


def uniform(keys: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
    """Uniform numbers in [0, 1): keys [B] -> float64 [B, *shape]."""
    return (_shift(bits(keys, math.prod(shape)), 11).double() * 2.0**-53).view(-1, *shape)


def normal(keys: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers by Box-Muller: keys [B] -> [B, *shape]. Computed in float64, so devices agree closely."""
    raw = bits(keys, math.prod(shape))
    radius = torch.sqrt(-2 * torch.log((_shift(raw, 32).double() + 1) * 2.0**-32))
    angle = (raw & 0xFFFFFFFF).double() * (2 * math.pi * 2.0**-32)
    return (radius * torch.cos(angle)).to(dtype).view(-1, *shape)


def reseed(*parts: int | str) -> None:
    """What torch draws by itself from here on, as in dropout, follows from a key as well."""
    torch.manual_seed(key(*parts))


def permute(i: int, n: int, key: int) -> int:
    """Where item i of 0..n-1 stands in the keyed random order: a bijection evaluated by index.

    A four-round Feistel network over the next even power of two, walked until it lands inside (Black & Rogaway 2002):
    no list is stored, so a run over 10^8 items restarts at once.
    """
    half = max(1, (max(n - 1, 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = i >> half, i & mask
        for round in range(4):
            left, right = right, left ^ (_mix(key + 0x9E3779B97F4A7C15 * (round + 1) + right) & mask)
        i = left << half | right
        if i < n:
            return i


def _shift(x: Tensor, n: int) -> Tensor:
    """Logical shift right; torch shifts arithmetically."""
    return (x >> n) & ((1 << (64 - n)) - 1)


def _mix(x: int) -> int:
    x = ((x ^ (x >> 30 & 0x3FFFFFFFF)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return x ^ (x >> 31)
