"""Random inpainting masks: boxes and strokes, a function of the key, never empty, of limited area."""

import numpy as np
import pytest

from latentdiff.config import UserError
from latentdiff.data.masks import MasksConfig, random_mask


def test_a_mask_is_a_function_of_its_key() -> None:
    assert np.array_equal(random_mask(MasksConfig(), 32, 48, 7), random_mask(MasksConfig(), 32, 48, 7))
    assert not np.array_equal(random_mask(MasksConfig(), 32, 48, 7), random_mask(MasksConfig(), 32, 48, 8))


def test_masks_are_binary_and_cover_all_areas_up_to_the_maximum() -> None:
    masks = [random_mask(MasksConfig(), 64, 48, key) for key in range(300)]
    assert {mask.shape for mask in masks} == {(64, 48)} and all(set(np.unique(m)) == {0, 1} for m in masks)
    areas = np.array([mask.mean() for mask in masks])
    assert areas.max() <= 0.7 and (areas < 0.1).mean() > 0.05 and (areas > 0.4).mean() > 0.05
    frequency = np.mean(masks, axis=0)
    assert frequency.min() > 0.05, "a model would never learn to inpaint a pixel that is never masked"


def test_box_masks_are_rectangles_and_stroke_masks_are_not() -> None:
    def is_box(mask):
        y, x = np.nonzero(mask)
        return mask.sum() == (np.ptp(y) + 1) * (np.ptp(x) + 1)

    boxes = [random_mask(MasksConfig(box_fraction=1.0, max_count=1), 64, 64, key) for key in range(20)]
    strokes = [random_mask(MasksConfig(box_fraction=0.0, max_count=1), 64, 64, key) for key in range(20)]
    assert all(map(is_box, boxes)) and not any(map(is_box, strokes))


def test_invalid_settings_are_refused() -> None:
    with pytest.raises(UserError, match="max_area=0.0001"):
        random_mask(MasksConfig(max_area=1e-4), 32, 32, 0)
    with pytest.raises(UserError, match="box_size of Masks is"):
        MasksConfig(box_size=(0.5, 0.1))
