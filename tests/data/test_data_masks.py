"""Random holes: a function of the key, neither empty nor everything, wide and thin, strokes and boxes."""

import numpy as np
import pytest

from latentdiff.config import UserError
from latentdiff.data.masks import MasksConfig, random_mask


def test_a_key_names_a_mask() -> None:
    assert np.array_equal(random_mask(MasksConfig(), 32, 48, 7), random_mask(MasksConfig(), 32, 48, 7))
    assert not np.array_equal(random_mask(MasksConfig(), 32, 48, 7), random_mask(MasksConfig(), 32, 48, 8))


def test_masks_are_zeros_and_ones_of_all_sizes_up_to_the_largest() -> None:
    masks = [random_mask(MasksConfig(), 64, 48, key) for key in range(300)]
    assert {mask.shape for mask in masks} == {(64, 48)} and all(set(np.unique(m)) == {0, 1} for m in masks)
    shares = np.array([mask.mean() for mask in masks])
    assert shares.max() <= 0.7 and (shares < 0.1).mean() > 0.05 and (shares > 0.4).mean() > 0.05
    everywhere = np.mean(masks, axis=0)
    assert everywhere.min() > 0.05, "a place that is never filled would never be learned"


def test_boxes_are_boxes_and_strokes_are_not() -> None:
    def is_box(mask):
        rows, columns = np.nonzero(mask)
        return mask.sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)

    boxes = [random_mask(MasksConfig(boxes=1.0, count=1), 64, 64, key) for key in range(20)]
    strokes = [random_mask(MasksConfig(boxes=0.0, count=1), 64, 64, key) for key in range(20)]
    assert all(map(is_box, boxes)) and not any(map(is_box, strokes))


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(UserError, match="largest=0.0001"):
        random_mask(MasksConfig(largest=1e-4), 32, 32, 0)
    with pytest.raises(UserError, match="box is"):
        MasksConfig(box=(0.5, 0.1))
