"""A condition computed elsewhere goes through the door it is meant for."""

import pytest
import torch

from latentdiff.conditioning.conditioner import Conditioner
from latentdiff.conditioning.precomputed import PrecomputedCondition, PrecomputedConfig
from latentdiff.config import UserError

DROP = torch.zeros(2, dtype=torch.bool)


@pytest.mark.parametrize("door, shape", [("context", (2, 5, 7)), ("concat", (2, 7, 4, 4)), ("vector", (2, 7))])
def test_each_door_gets_the_field_of_its_name_as_it_is(door, shape):
    conditioner = Conditioner([PrecomputedCondition(PrecomputedConfig(door, 7))])
    sizes = conditioner.context_dim, conditioner.concat_channels, conditioner.vector_dim
    assert sizes == tuple(7 * (door == name) for name in ("context", "concat", "vector"))
    x = torch.randn(shape)
    cond = conditioner({door: x}, ~DROP)
    assert getattr(cond, door) is x
    assert not conditioner.can_hide


def test_a_context_may_come_with_a_mask():
    mask = torch.tensor([[True, False], [True, True]])
    cond = PrecomputedCondition(PrecomputedConfig("context", 3))(
        {"context": torch.randn(2, 2, 3), "context_mask": mask}, DROP
    )
    assert cond.context_mask is mask


def test_a_door_that_is_none_and_a_field_that_is_missing_are_refused():
    with pytest.raises(UserError, match="'window'"):
        PrecomputedCondition(PrecomputedConfig("window", 3))
    with pytest.raises(UserError, match="reads a vector"):
        PrecomputedCondition(PrecomputedConfig("vector", 3))({}, DROP)
