"""Tasks on shapes: true pictures get full marks, others do not, and the page says what the results say."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import tasks
from latentdiff.conditioning.label import LabelConfig
from latentdiff.conditioning.layout import LayoutConfig
from latentdiff.data.shapes.dataset import ShapesConfig, ShapesDataset
from latentdiff.recipe import DiffusionRecipe, with_fields

ROOT = Path(__file__).resolve().parent.parent.parent
KINDS = ("circle", "square", "triangle", "star")
CONDITIONS = {"Label": LabelConfig(classes=4), "Layout": LayoutConfig(classes=4)}


def test_the_page_of_tasks_is_made_from_the_committed_results(tmp_path):
    """`python -m benchmarks.tasks --table` writes it anew."""
    page = tmp_path / "tasks.md"
    page.write_text((ROOT / "docs" / "tasks.md").read_text())
    tasks.table(ROOT / "benchmarks" / "results", page)
    assert page.read_text() == (ROOT / "docs" / "tasks.md").read_text()


@pytest.mark.parametrize(("kind", "objects", "figures"), [
    ("Label", 1, ("class_accuracy",)), ("Layout", 2, ("box_iou", "box_class_right")),
])  # fmt: skip
def test_true_pictures_get_full_marks_and_those_of_other_scenes_do_not(kind, objects, figures, monkeypatch, tmp_path):
    data = ShapesConfig(kinds=KINDS, max_objects=objects, val_count=24)
    recipe = DiffusionRecipe(data=data, conditions=(CONDITIONS[kind],))
    items = [with_fields(recipe, ShapesDataset(data, "test")).item(i, 0) for i in range(24)]
    true = tasks.images(items)
    for x, low, high in ((true, 0.9, 1.0), (true.roll(1, 0), 0.0, 0.6)):
        monkeypatch.setattr(tasks, "draw", lambda *_, x=x: x)
        found, _ = tasks.ARMS[kind](None, items, tmp_path)
        assert all(low <= found[name] <= high for name in figures), found


def test_the_overlap_of_boxes_is_their_intersection_over_their_union():
    assert tasks.overlap((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert tasks.overlap((0, 0, 1, 1), (2, 2, 3, 3)) == 0


def test_the_distance_of_histograms_is_the_share_that_would_have_to_move():
    assert tasks.distance(Counter(a=1, b=1), Counter(a=3, b=1)) == pytest.approx(0.25)
    assert tasks.distance(Counter(), Counter(a=3)) == pytest.approx(0.5)


def test_a_picture_made_small_again_has_the_size_of_the_small_one():
    assert tasks.reduced(torch.zeros(3, 32, 32), (8, 8)).shape == (8, 8, 3)
    assert np.abs(tasks.reduced(torch.ones(3, 32, 32), (8, 8)).astype(int) - 255).max() == 0
