"""A class label: its doors and its hidden row."""

import pytest
import torch

from latentdiff.conditioning.label import LabelCondition, LabelConfig
from latentdiff.config import UserError

LABELS = {"label": torch.tensor([0, 2])}
DROP = torch.tensor([False, True])


@pytest.mark.parametrize("door", ["context", "vector"])
def test_a_hidden_label_is_the_extra_row_and_changes_nothing_else(door: str) -> None:
    module = LabelCondition(LabelConfig(classes=3, dim=4, input=door))
    rows = module.embedding.weight
    assert rows.shape == (4, 4)
    cond = module(LABELS, DROP)
    assert torch.equal((cond.context[:, 0] if door == "context" else cond.vector), rows[[0, 3]])
    assert (module.context_dim, module.vector_dim) == ((4, 0) if door == "context" else (0, 4))


def test_without_dropout_there_is_no_extra_row() -> None:
    assert LabelCondition(LabelConfig(dropout=0.0)).embedding.weight.shape == (1000, 512)


def test_every_row_that_was_used_gets_a_gradient() -> None:
    module = LabelCondition(LabelConfig(classes=3, dim=4))
    module(LABELS, DROP).context.square().sum().backward()
    assert (module.embedding.weight.grad.abs().sum(dim=1) > 0).tolist() == [True, False, False, True]


def test_an_unknown_door_is_refused() -> None:
    with pytest.raises(UserError, match="'concat'; it can be context or vector"):
        LabelCondition(LabelConfig(input="concat"))
