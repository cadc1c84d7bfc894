"""Coordinates tell every place where it is, at any size, and are never hidden."""

import torch

from latentdiff.conditioning.conditioner import Conditioner
from latentdiff.conditioning.coordinates import Coordinates, CoordinatesCondition


def planes(height: int, width: int, drop: bool = False) -> torch.Tensor:
    conditioner = Conditioner([CoordinatesCondition(Coordinates())])
    return conditioner({"size": (height, width)}, torch.full((2,), drop)).concat


def test_rows_and_columns_run_from_minus_one_to_one():
    x = planes(3, 5)
    assert x.shape == (2, 2, 3, 5)
    assert torch.equal(x[0, 0, :, 0], torch.tensor([-1.0, 0.0, 1.0]))
    assert torch.equal(x[1, 1, 0], torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0]))


def test_coordinates_stay_when_everything_that_can_be_hidden_is():
    assert torch.equal(planes(4, 4, drop=True), planes(4, 4, drop=False))
    assert not Conditioner([CoordinatesCondition(Coordinates())]).can_hide
