"""Smaller and worse pictures: antialiased, or worn in a random order that the key decides."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from latentdiff.config import UserError
from latentdiff.data.degrade import DegradeConfig, degrade

NOISE = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
STRIPES = np.repeat(((np.arange(96) // 2 % 2) * 255).astype(np.uint8)[None, :, None], 64, 0).repeat(3, 2)


def test_bicubic_is_antialiased() -> None:
    """Stripes finer than the small picture's pixels become gray instead of other stripes."""
    small = degrade(DegradeConfig(4), STRIPES, 0).astype(int)
    assert small.shape == (16, 24, 3)
    assert np.abs(small[:, 2:-2] - 127).max() < 8 and np.ptp(STRIPES[::4, 1::3]) == 255


def test_bicubic_equals_torchs_up_to_rounding() -> None:
    x = torch.from_numpy(NOISE).permute(2, 0, 1)[None].double()
    want = F.interpolate(x, (16, 24), mode="bicubic", antialias=True).clamp(0, 255)[0].permute(1, 2, 0).numpy()
    assert np.abs(degrade(DegradeConfig(4), NOISE, 0) - want).max() <= 1.01


def test_bsr_is_another_picture_for_every_key_and_the_same_for_the_same() -> None:
    bsr = DegradeConfig(4, "bsr")
    made = [degrade(bsr, STRIPES, key) for key in range(8)]
    assert all(m.shape == (16, 24, 3) and m.dtype == np.uint8 for m in made)
    assert all(np.array_equal(m, degrade(bsr, STRIPES, key)) for key, m in enumerate(made))
    assert len({m.tobytes() for m in made}) == 8
    assert np.array_equal(degrade(DegradeConfig(4), STRIPES, 0), degrade(DegradeConfig(4), STRIPES, 1))


def test_bsr_keeps_what_the_picture_shows() -> None:
    halves = np.zeros((64, 64, 3), np.uint8)
    halves[:, 32:] = (250, 120, 30)
    for key in range(12):
        small = degrade(DegradeConfig(4, "bsr"), halves, key).astype(float)
        assert small[4:-4, 1:5].mean() < 25 and np.abs(small[4:-4, 11:15].mean((0, 1)) - (250, 120, 30)).max() < 25


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(UserError, match="'blur'; it must be bicubic or bsr"):
        DegradeConfig(kind="blur")
