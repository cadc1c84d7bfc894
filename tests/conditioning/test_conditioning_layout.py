"""Layouts as tokens, as in the original release; a dropped layout has no boxes."""

import pytest
import torch

from latentdiff.conditioning.layout import LayoutCondition, LayoutConfig
from latentdiff.config import UserError

SMALL = LayoutConfig(
    classes=4, objects=2, dim=8, depth=1, heads=2, head_dim=4, vocab_size=101, whole_image_tokens=False
)  # 10 x 10
BOXES = torch.tensor([[[0.0, 0.0, 1.0, 1.0, 3.0], [0.5, 0.25, 0.75, 0.5, 0.0]],
                      [[0.1, 0.2, 0.3, 0.4, 1.0], [-1.0, -1.0, -1.0, -1.0, -1.0]]])  # fmt: skip
KEEP = torch.zeros(2, dtype=torch.bool)


def test_a_box_is_its_class_and_the_cells_of_two_corners_counted_row_by_row() -> None:
    tokens = LayoutCondition(SMALL).tokenize(BOXES, KEEP)
    assert tokens.tolist() == [[3, 0, 99, 0, 24, 47], [1, 21, 43, 100, 100, 100]]


def test_the_released_model_reads_ninety_two_tokens_of_which_the_last_two_are_the_whole_image() -> None:
    module = LayoutCondition(LayoutConfig(dim=8, depth=1))
    assert (module.tokens.weight.shape, module.positions.weight.shape) == ((8192, 8), (92, 8))
    tokens = module.tokenize(BOXES, KEEP)
    assert tokens.shape == (2, 92)
    assert tokens[0, :3].tolist() == [3, 0, 90 * 90 - 1] and tokens[0, -2:].tolist() == [0, 90 * 90 - 1]
    assert set(tokens[1, 3:90].tolist()) == {8191}


def test_a_dropped_layout_has_no_boxes() -> None:
    module = LayoutCondition(SMALL).eval()
    dropped = module({"boxes": BOXES}, torch.tensor([True, False])).context
    empty = module({"boxes": torch.full((2, 1, 5), -1.0)}, KEEP).context
    kept = module({"boxes": BOXES}, KEEP).context
    assert torch.equal(dropped[0], empty[0]) and not torch.equal(kept[0], empty[0])
    assert torch.allclose(dropped[1], kept[1], atol=1e-6)
    assert kept.shape == (2, 6, 8)


def test_of_too_many_boxes_the_first_are_kept() -> None:
    many = torch.rand(1, 5, 5)
    module = LayoutCondition(SMALL)
    assert torch.equal(module.tokenize(many, KEEP[:1]), module.tokenize(many[:, :2], KEEP[:1]))


def test_classes_that_do_not_fit_the_vocabulary_are_refused() -> None:
    with pytest.raises(UserError, match="classes=101"):
        LayoutCondition(LayoutConfig(classes=101, vocab_size=101))


def test_initial_embeddings_are_similar_for_near_corners_and_not_for_classes() -> None:
    module = LayoutCondition(LayoutConfig(dim=64, depth=1, vocab_size=640))  # 25 x 25
    tokens = torch.nn.functional.normalize(module.tokens.weight[: 25 * 25].detach(), dim=1).view(25, 25, 64)
    near, far = ((tokens[:, : 25 - d] * tokens[:, d:]).sum(2).mean() for d in (1, 10))
    assert near > far + 0.2 and (tokens[0, 0] * tokens[0, 1]).sum() < 0.9
