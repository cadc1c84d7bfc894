"""Overlapping tiles: they cover everything, and their weights sum to one."""

import pytest
import torch

from latentdiff.layers import blend, windows


@pytest.mark.parametrize(
    ("length", "tile", "overlap", "scale"),
    [(16, 8, 2, 1), (17, 8, 0, 1), (23, 8, 7, 1), (5, 8, 2, 1), (8, 8, 4, 1), (30, 7, 3, 4), (64, 16, 4, 8)],
)
@pytest.mark.parametrize("shift", [0, 0.01, 0.4, 0.99])
def test_the_weights_over_any_place_sum_to_one(length, tile, overlap, scale, shift):
    total = torch.zeros(length * scale)
    found = windows(length, tile, overlap, scale, shift)
    for place, weight in found:
        assert len(weight) == (place.stop - place.start) * scale and (weight > 0).all()
        total[place.start * scale : place.stop * scale] += weight
    assert torch.allclose(total, torch.ones_like(total), atol=1e-6)
    assert found[0][0].start == 0 and found[-1][0].stop == length
    for (here, _), (there, _) in zip(found, found[1:]):
        assert here.stop - there.start >= overlap and here.stop - here.start == tile


def test_tiles_of_a_picture_put_together_are_the_picture():
    x = torch.randn(2, 3, 21, 13, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(blend(lambda rows, columns: x[:, :, rows, columns], 21, 13, 8, 3), x, atol=1e-6)
    ones = blend(lambda r, c: torch.ones(1, 1, 2 * (r.stop - r.start), 2 * (c.stop - c.start)), 21, 13, 8, 3, scale=2)
    assert ones.shape == (1, 1, 42, 26) and torch.allclose(ones, torch.ones_like(ones), atol=1e-6)


def test_a_step_between_two_tiles_becomes_a_ramp():
    made = blend(lambda rows, columns: torch.full((1, 1, 1, 8), float(columns.start > 0)), 1, 12, 8, 4)[0, 0, 0]
    assert torch.allclose(made, torch.tensor([0, 0, 0, 0, 1 / 8, 3 / 8, 5 / 8, 7 / 8, 1, 1, 1, 1]), atol=1e-6)


def test_tiles_that_overlap_entirely_are_refused():
    with pytest.raises(AssertionError, match="cannot overlap"):
        blend(lambda rows, columns: torch.zeros(1, 1, 8, 8), 16, 16, 8, 8)
