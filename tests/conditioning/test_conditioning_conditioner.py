"""The conditioner joins its conditions, drops the requested ones, and samples the drops of training."""

import pytest
import torch
from torch import Tensor

from latentdiff import rng
from latentdiff.conditioning.cond import Cond
from latentdiff.conditioning.condition import ConditionModule
from latentdiff.conditioning.conditioner import Conditioner
from latentdiff.conditioning.label import LabelCondition, LabelConfig
from latentdiff.config import UserError

BATCH = {"label": torch.tensor([0, 1, 2]), "spatial": torch.rand(3, 2, 4, 4)}
DROP, KEEP = torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)


class Spatial(ConditionModule):
    """Concatenated channels, zero if dropped."""

    concat_channels = 2

    def forward(self, batch: dict, drop: Tensor) -> Cond:
        return Cond(concat=batch["spatial"] * ~drop[:, None, None, None])


def label(dropout: float = 0.5, input: str = "context", dim: int = 4) -> LabelCondition:
    return LabelCondition(LabelConfig(classes=3, dim=dim, dropout=dropout, input=input))


def test_conditions_are_joined_per_input_of_the_unet() -> None:
    conditioner = Conditioner([label(), Spatial(), label(), label(input="vector", dim=6)])
    cond = conditioner(BATCH, KEEP)
    assert cond.context.shape == (3, 2, 4) and cond.concat.shape == (3, 2, 4, 4) and cond.vector.shape == (3, 6)
    widths = (conditioner.context_dim, conditioner.concat_channels, conditioner.vector_dim)
    assert widths == (4, 2, 6) and conditioner.can_drop


def test_without_conditions_the_result_is_empty() -> None:
    conditioner = Conditioner([])
    assert conditioner({}, KEEP) == Cond() and conditioner.sample_drops(torch.arange(3)) == []
    assert (conditioner.context_dim, conditioner.concat_channels, conditioner.vector_dim) == (0, 0, 0)
    assert not conditioner.can_drop


def test_one_flag_drops_only_conditions_with_dropout() -> None:
    conditioner = Conditioner([label(), label(dropout=0.0), Spatial()])
    kept, dropped = conditioner(BATCH, KEEP), conditioner(BATCH, DROP)
    assert torch.equal(dropped.concat, BATCH["spatial"]) and torch.equal(dropped.context[:, 1], kept.context[:, 1])
    assert not torch.equal(dropped.context[:, 0], kept.context[:, 0])


def test_a_flag_per_condition_drops_that_condition_and_sample_alone() -> None:
    conditioner = Conditioner([label(), label(), Spatial()])
    drop = torch.tensor([True, False, False])
    kept, dropped = conditioner(BATCH, KEEP), conditioner(BATCH, [KEEP, drop, KEEP])
    assert torch.equal(dropped.context[:, 0], kept.context[:, 0]) and torch.equal(dropped.concat, kept.concat)
    assert torch.equal(dropped.context[1:, 1], kept.context[1:, 1])
    assert not torch.equal(dropped.context[0, 1], kept.context[0, 1])


def test_drops_are_sampled_per_condition_with_its_dropout_and_depend_on_the_key_alone() -> None:
    conditioner = Conditioner([label(0.1), label(0.5), Spatial()])
    keys = rng.keys(0, 7, range(4000), "drop")
    drops = conditioner.sample_drops(keys)
    assert [round(drop.double().mean().item(), 1) for drop in drops] == [0.1, 0.5, 0.0]
    together = (drops[0] & drops[1]).double().mean().item()
    assert together == pytest.approx(0.05, abs=0.015)  # independent
    assert all(torch.equal(a[5:9], b) for a, b in zip(drops, conditioner.sample_drops(keys[5:9])))


def test_conditions_of_different_widths_for_one_input_are_refused() -> None:
    with pytest.raises(UserError, match=r"context_dim: \[4, 8\]"):
        Conditioner([label(), label(dim=8)])
