"""Low-resolution copies: antialiased (bicubic), or degraded with random numbers that depend on the key (bsr)."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from latentdiff.config import UserError
from latentdiff.data.degrade import DegradeConfig, degrade

NOISE = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
STRIPES = np.repeat(((np.arange(96) // 2 % 2) * 255).astype(np.uint8)[None, :, None], 64, 0).repeat(3, 2)


def test_bicubic_resizing_is_antialiased() -> None:
    """Stripes narrower than a low-resolution pixel become gray, without aliasing."""
    low_res = degrade(DegradeConfig(4), STRIPES, 0).astype(int)
    assert low_res.shape == (16, 24, 3)
    assert np.abs(low_res[:, 2:-2] - 127).max() < 8 and np.ptp(STRIPES[::4, 1::3]) == 255


def test_bicubic_resizing_matches_torch_up_to_rounding() -> None:
    x = torch.from_numpy(NOISE).permute(2, 0, 1)[None].double()
    expected = F.interpolate(x, (16, 24), mode="bicubic", antialias=True).clamp(0, 255)[0].permute(1, 2, 0).numpy()
    assert np.abs(degrade(DegradeConfig(4), NOISE, 0) - expected).max() <= 1.01


def test_bsr_degradation_is_a_function_of_the_key() -> None:
    bsr = DegradeConfig(4, "bsr")
    images = [degrade(bsr, STRIPES, key) for key in range(8)]
    assert all(image.shape == (16, 24, 3) and image.dtype == np.uint8 for image in images)
    assert all(np.array_equal(image, degrade(bsr, STRIPES, key)) for key, image in enumerate(images))
    assert len({image.tobytes() for image in images}) == 8
    assert np.array_equal(degrade(DegradeConfig(4), STRIPES, 0), degrade(DegradeConfig(4), STRIPES, 1))


def test_bsr_degradation_keeps_the_content_of_the_image() -> None:
    halves = np.zeros((64, 64, 3), np.uint8)
    halves[:, 32:] = (250, 120, 30)
    for key in range(12):
        low_res = degrade(DegradeConfig(4, "bsr"), halves, key).astype(float)
        assert low_res[4:-4, 1:5].mean() < 25 and np.abs(low_res[4:-4, 11:15].mean((0, 1)) - (250, 120, 30)).max() < 25


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UserError, match="'blur'; it must be bicubic or bsr"):
        DegradeConfig(kind="blur")
