"""A class label: both inputs of the U-Net, and the empty class."""

import pytest
import torch

from latentdiff.conditioning.label import LabelCondition, LabelConfig
from latentdiff.config import UserError

LABELS = {"label": torch.tensor([0, 2])}
DROP = torch.tensor([False, True])


@pytest.mark.parametrize("target", ["context", "vector"])
def test_a_dropped_label_becomes_the_empty_class_and_changes_nothing_else(target: str) -> None:
    module = LabelCondition(LabelConfig(classes=3, dim=4, input=target))
    table = module.embedding.weight
    assert table.shape == (4, 4)
    cond = module(LABELS, DROP)
    assert torch.equal((cond.context[:, 0] if target == "context" else cond.vector), table[[0, 3]])
    assert (module.context_dim, module.vector_dim) == ((4, 0) if target == "context" else (0, 4))


def test_without_dropout_there_is_no_empty_class() -> None:
    assert LabelCondition(LabelConfig(dropout=0.0)).embedding.weight.shape == (1000, 512)


def test_every_embedding_that_was_used_gets_a_gradient() -> None:
    module = LabelCondition(LabelConfig(classes=3, dim=4))
    module(LABELS, DROP).context.square().sum().backward()
    assert (module.embedding.weight.grad.abs().sum(dim=1) > 0).tolist() == [True, False, False, True]


def test_an_unknown_input_is_refused() -> None:
    with pytest.raises(UserError, match="'concat'; it must be context or vector"):
        LabelCondition(LabelConfig(input="concat"))
