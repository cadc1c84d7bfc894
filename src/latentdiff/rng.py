"""Randomness as a function of a key: the same key gives the same numbers on any rank, worker, batch size or restart.

A key is a hash of the purpose of the number, e.g. key(seed, step, position, "noise"). There is no generator state to
save, and a resumed run samples the same numbers as an uninterrupted one.
"""

import hashlib
import math

import torch
from torch import Tensor

GOLDEN = -7046029254386353131  # 2**64 / golden ratio, as a signed 64-bit integer (SplitMix64, Steele et al. 2014)


def key(*parts: int | str) -> int:
    """A 63-bit key from any integers and strings."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little") >> 1


def keys(seed: int, step: int, positions: range, purpose: str, device: torch.device | str = "cpu") -> Tensor:
    """One key per sample: positions in the global batch of `step` -> int64 [B]. Does not synchronize the device."""
    keys = torch.tensor([key(seed, step, position, purpose) for position in positions], dtype=torch.int64)
    return keys.to(device, non_blocking=True)


def bits(keys: Tensor, count: int) -> Tensor:
    """SplitMix64 over a counter: keys [B] -> int64 [B, count] of independent fair bits."""
    x = keys[:, None] + GOLDEN * torch.arange(1, count + 1, device=keys.device)  # overflow wraps around, as intended
    x = (x ^ _shift(x, 30)) * -4658895280553007687
    x = (x ^ _shift(x, 27)) * -7723592293110705685
    return x ^ _shift(x, 31)


def uniform(keys: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
    """Uniform numbers in [0, 1): keys [B] -> float64 [B, *shape]."""
    return (_shift(bits(keys, math.prod(shape)), 11).double() * 2.0**-53).view(-1, *shape)


def normal(keys: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers by Box-Muller: keys [B] -> [B, *shape]; in float64, so that devices agree closely."""
    random_bits = bits(keys, math.prod(shape))
    radius = torch.sqrt(-2 * torch.log((_shift(random_bits, 32).double() + 1) * 2.0**-32))
    angle = (random_bits & 0xFFFFFFFF).double() * (2 * math.pi * 2.0**-32)
    return (radius * torch.cos(angle)).to(dtype).view(-1, *shape)


def reseed(*parts: int | str) -> None:
    """Seed torch's global generator, which dropout uses, with a key."""
    torch.manual_seed(key(*parts))


def permute(i: int, n: int, key: int) -> int:
    """Position of item i of 0..n-1 in a keyed random permutation, computed without storing the permutation.

    A four-round Feistel network over the next even power of two, repeated until the value is below n (cycle walking,
    Black & Rogaway 2002), so a run over 10^8 items resumes at once.
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
    """Logical shift right; >> of torch is arithmetic."""
    return (x >> n) & ((1 << (64 - n)) - 1)


def _mix(x: int) -> int:
    x = ((x ^ (x >> 30 & 0x3FFFFFFFF)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return x ^ (x >> 31)
