"""Overlapping tiles cover everything, and their weights sum to one."""

import pytest
import torch

from latentdiff.layers import blend, windows


@pytest.mark.parametrize(
    ("length", "tile", "overlap", "scale"),
    [(16, 8, 2, 1), (17, 8, 0, 1), (23, 8, 7, 1), (5, 8, 2, 1), (8, 8, 4, 1), (30, 7, 3, 4), (64, 16, 4, 8)],
)
@pytest.mark.parametrize("offset", [0, 0.01, 0.4, 0.99])
def test_the_weights_sum_to_one_at_every_position(length, tile, overlap, scale, offset):
    total = torch.zeros(length * scale)
    tiles = windows(length, tile, overlap, scale, offset)
    for window, weight in tiles:
        assert len(weight) == (window.stop - window.start) * scale and (weight > 0).all()
        total[window.start * scale : window.stop * scale] += weight
    assert torch.allclose(total, torch.ones_like(total), atol=1e-6)
    assert tiles[0][0].start == 0 and tiles[-1][0].stop == length
    for (first, _), (second, _) in zip(tiles, tiles[1:]):
        assert first.stop - second.start >= overlap and first.stop - first.start == tile


def test_blended_tiles_of_an_image_are_the_image():
    x = torch.randn(2, 3, 21, 13, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(blend(lambda rows, columns: x[:, :, rows, columns], 21, 13, 8, 3), x, atol=1e-6)
    ones = blend(lambda r, c: torch.ones(1, 1, 2 * (r.stop - r.start), 2 * (c.stop - c.start)), 21, 13, 8, 3, scale=2)
    assert ones.shape == (1, 1, 42, 26) and torch.allclose(ones, torch.ones_like(ones), atol=1e-6)


def test_a_step_between_two_tiles_becomes_a_ramp():
    blended = blend(lambda rows, columns: torch.full((1, 1, 1, 8), float(columns.start > 0)), 1, 12, 8, 4)[0, 0, 0]
    assert torch.allclose(blended, torch.tensor([0, 0, 0, 0, 1 / 8, 3 / 8, 5 / 8, 7 / 8, 1, 1, 1, 1]), atol=1e-6)


def test_tiles_that_overlap_entirely_are_refused():
    with pytest.raises(AssertionError, match="cannot overlap"):
        blend(lambda rows, columns: torch.zeros(1, 1, 8, 8), 16, 16, 8, 8)
