"""Runs on photographs: rasterised boxes, the segmentation network, and the page that matches the results."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import tasks_real
from latentdiff.training.settings import TrainConfig

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_table_of_tasks_is_generated_from_the_committed_results(tmp_path):
    """`python -m benchmarks tasks_real --table` writes it again."""
    page = tmp_path / "tasks.md"
    page.write_text((ROOT / "docs" / "tasks.md").read_text())
    tasks_real.write_table(ROOT / "benchmarks" / "results", page)
    assert page.read_text() == (ROOT / "docs" / "tasks.md").read_text()


def test_a_box_is_rasterised_as_the_ellipse_in_it_with_later_ones_on_top():
    boxes = np.array([[0.0, 0.0, 1.0, 0.5, 1], [0.25, 0.0, 0.5, 0.5, 0]], np.float32)
    segmentation = tasks_real.rasterise(boxes, 40, 80)
    assert segmentation.unique().tolist() == [0, 1, 2] and not segmentation[20:].any()
    assert (segmentation[:20] > 0).double().mean() == pytest.approx(np.pi / 4, abs=0.02)
    assert (segmentation[:20, 20:40] == 1).double().mean() == pytest.approx(np.pi / 4, abs=0.03)


def test_the_mean_iou_is_over_the_foreground_classes_that_occur():
    target, detected = torch.tensor([[0, 1, 1, 2]]), torch.tensor([[1, 1, 1, 0]])
    assert tasks_real.mean_iou(detected, target, 4) == pytest.approx((2 / 3 + 0) / 2)


def test_the_segmentation_network_detects_the_map_of_an_image_and_not_that_of_others():
    maps = torch.randint(3, (24, 4, 4), generator=torch.Generator().manual_seed(0))
    maps = maps.repeat_interleave(4, 1).repeat_interleave(4, 2)  # [24, 16, 16]
    colours = torch.tensor([[-1.0, 0, 1], [1, 0, -1], [0, 1, 0]])
    x = colours[maps].permute(0, 3, 1, 2)
    network = tasks_real.train_segmentation(x[:16], maps[:16], 3, TrainConfig(steps=60, batch_size=8, lr=3e-3))
    detected = network(x[16:]).argmax(1)
    assert tasks_real.mean_iou(detected, maps[16:], 3) > 0.9 > 0.6 > tasks_real.mean_iou(detected, maps[:8], 3)
