"""A precomputed condition is passed to the U-Net unchanged."""

import pytest
import torch

from latentdiff.conditioning.conditioner import Conditioner
from latentdiff.conditioning.precomputed import PrecomputedCondition, PrecomputedConfig
from latentdiff.config import UserError

DROP = torch.zeros(2, dtype=torch.bool)


@pytest.mark.parametrize("name, shape", [("context", (2, 5, 7)), ("concat", (2, 7, 4, 4)), ("vector", (2, 7))])
def test_each_input_gets_the_field_of_its_name_unchanged(name, shape):
    conditioner = Conditioner([PrecomputedCondition(PrecomputedConfig(name, 7))])
    sizes = conditioner.context_dim, conditioner.concat_channels, conditioner.vector_dim
    assert sizes == tuple(7 * (name == other) for other in ("context", "concat", "vector"))
    x = torch.randn(shape)
    cond = conditioner({name: x}, ~DROP)
    assert getattr(cond, name) is x
    assert not conditioner.can_drop


def test_a_context_may_come_with_a_mask():
    mask = torch.tensor([[True, False], [True, True]])
    cond = PrecomputedCondition(PrecomputedConfig("context", 3))(
        {"context": torch.randn(2, 2, 3), "context_mask": mask}, DROP
    )
    assert cond.context_mask is mask


def test_an_unknown_input_and_a_missing_field_are_refused():
    with pytest.raises(UserError, match="'window'"):
        PrecomputedCondition(PrecomputedConfig("window", 3))
    with pytest.raises(UserError, match="needs a precomputed vector"):
        PrecomputedCondition(PrecomputedConfig("vector", 3))({}, DROP)
