"""Tasks on shapes: true images have full scores, others do not, and the page matches the results."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import tasks
from benchmarks.common import task_table
from latentdiff.conditioning.label import LabelConfig
from latentdiff.conditioning.layout import LayoutConfig
from latentdiff.data.shapes.dataset import ShapesConfig, ShapesDataset
from latentdiff.recipe import with_condition_fields

ROOT = Path(__file__).resolve().parent.parent.parent
KINDS = ("circle", "square", "triangle", "star")
CONDITIONS = {"Label": LabelConfig(classes=4), "Layout": LayoutConfig(classes=4)}


def test_the_table_of_tasks_is_generated_from_the_committed_results(tmp_path):
    """`python -m benchmarks tasks --table` writes it again."""
    page = tmp_path / "tasks.md"
    page.write_text((ROOT / "docs" / "tasks.md").read_text())
    task_table.write_table(ROOT / "benchmarks" / "results", page)
    assert page.read_text() == (ROOT / "docs" / "tasks.md").read_text()


@pytest.mark.parametrize(("condition", "objects", "metrics"), [
    ("Label", 1, ("class_accuracy",)), ("Layout", 2, ("box_iou", "box_class_accuracy")),
])  # fmt: skip
def test_true_images_have_full_scores_and_those_of_other_scenes_do_not(
    condition, objects, metrics, monkeypatch, tmp_path
):
    data = ShapesConfig(kinds=KINDS, max_objects=objects, val_count=24)
    dataset = with_condition_fields(ShapesDataset(data, "test"), (CONDITIONS[condition],))
    items = [dataset.item(i, 0) for i in range(24)]
    true = tasks.images(items)
    for x, low, high in ((true, 0.9, 1.0), (true.roll(1, 0), 0.0, 0.6)):
        monkeypatch.setattr(tasks, "sample", lambda *_, x=x: x)
        result, _ = tasks.ARMS[condition](None, items, tmp_path)
        assert all(low <= result[name] <= high for name in metrics), result


def test_box_iou_is_intersection_over_union():
    assert tasks.box_iou((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert tasks.box_iou((0, 0, 1, 1), (2, 2, 3, 3)) == 0


def test_total_variation_is_the_fraction_that_would_have_to_move():
    assert tasks.total_variation(Counter(a=1, b=1), Counter(a=3, b=1)) == pytest.approx(0.25)
    assert tasks.total_variation(Counter(), Counter(a=3)) == pytest.approx(0.5)


def test_a_downsampled_image_has_the_requested_size():
    assert tasks.downsample(torch.zeros(3, 32, 32), (8, 8)).shape == (8, 8, 3)
    assert np.abs(tasks.downsample(torch.ones(3, 32, 32), (8, 8)).astype(int) - 255).max() == 0
