"""The conditioner joins its parts, hides what it is told to, and draws what training hides."""

import pytest
import torch
from torch import Tensor, nn

from latentdiff import rng
from latentdiff.conditioning.cond import Cond
from latentdiff.conditioning.conditioner import Conditioner
from latentdiff.conditioning.label import LabelCondition, LabelConfig
from latentdiff.config import UserError

BATCH = {"label": torch.tensor([0, 1, 2]), "picture": torch.rand(3, 2, 4, 4)}
HIDE, SHOW = torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)


class Picture(nn.Module):
    """A spatial part, hidden by zeros."""

    dropout, context_dim, concat_channels, vector_dim = 0.0, 0, 2, 0

    def forward(self, batch: dict, drop: Tensor) -> Cond:
        return Cond(concat=batch["picture"] * ~drop[:, None, None, None])


def label(dropout: float = 0.5, door: str = "context", dim: int = 4) -> LabelCondition:
    return LabelCondition(LabelConfig(classes=3, dim=dim, dropout=dropout, input=door))


def test_parts_are_joined_at_their_doors() -> None:
    conditioner = Conditioner([label(), Picture(), label(), label(door="vector", dim=6)])
    cond = conditioner(BATCH, SHOW)
    assert cond.context.shape == (3, 2, 4) and cond.concat.shape == (3, 2, 4, 4) and cond.vector.shape == (3, 6)
    doors = (conditioner.context_dim, conditioner.concat_channels, conditioner.vector_dim)
    assert doors == (4, 2, 6) and conditioner.can_hide


def test_without_parts_nothing_is_conditioned() -> None:
    conditioner = Conditioner([])
    assert conditioner({}, SHOW) == Cond() and conditioner.draw_drops(torch.arange(3)) == []
    assert (conditioner.context_dim, conditioner.concat_channels, conditioner.vector_dim) == (0, 0, 0)
    assert not conditioner.can_hide


def test_one_flag_hides_only_what_training_hid() -> None:
    conditioner = Conditioner([label(), label(dropout=0.0), Picture()])
    shown, hidden = conditioner(BATCH, SHOW), conditioner(BATCH, HIDE)
    assert torch.equal(hidden.concat, BATCH["picture"]) and torch.equal(hidden.context[:, 1], shown.context[:, 1])
    assert not torch.equal(hidden.context[:, 0], shown.context[:, 0])


def test_a_flag_per_part_hides_that_part_and_sample_alone() -> None:
    conditioner = Conditioner([label(), label(), Picture()])
    drop = torch.tensor([True, False, False])
    shown, hidden = conditioner(BATCH, SHOW), conditioner(BATCH, [SHOW, drop, SHOW])
    assert torch.equal(hidden.context[:, 0], shown.context[:, 0]) and torch.equal(hidden.concat, shown.concat)
    assert torch.equal(hidden.context[1:, 1], shown.context[1:, 1])
    assert not torch.equal(hidden.context[0, 1], shown.context[0, 1])


def test_drops_are_drawn_per_part_at_its_rate_and_depend_on_the_key_alone() -> None:
    conditioner = Conditioner([label(0.1), label(0.5), Picture()])
    keys = rng.keys(0, 7, range(4000), "drop")
    drops = conditioner.draw_drops(keys)
    assert [round(drop.double().mean().item(), 1) for drop in drops] == [0.1, 0.5, 0.0]
    together = (drops[0] & drops[1]).double().mean().item()
    assert together == pytest.approx(0.05, abs=0.015)  # independent
    assert all(torch.equal(a[5:9], b) for a, b in zip(drops, conditioner.draw_drops(keys[5:9])))


def test_parts_of_different_widths_at_one_door_are_refused() -> None:
    with pytest.raises(UserError, match=r"context_dim: \[4, 8\]"):
        Conditioner([label(), label(dim=8)])
