import json

import numpy as np
import torch
from PIL import Image

from latentdiff.training import image_grid


def test_images_become_uint8_rounded_and_clamped():
    x = torch.tensor([-2.0, -1.0, -0.999, 0.0, 1.0, 3.0]).view(1, 1, 1, 6).expand(1, 3, 1, 6)
    assert image_grid.to_uint8(x)[0, 0, :, 0].tolist() == [0, 0, 0, 128, 255, 255]
    assert image_grid.to_uint8(x.to(torch.bfloat16).requires_grad_()).dtype == np.uint8


def test_uint8_to_float_and_back_is_exact():
    image = torch.arange(256, dtype=torch.uint8).view(1, 1, 256, 1).expand(1, 1, 256, 3)
    x = image.permute(0, 3, 1, 2).float() / 127.5 - 1
    assert np.array_equal(image_grid.to_uint8(x), image.numpy())


def test_a_grid_has_rows_of_images_with_white_gaps():
    x = torch.stack([torch.full((3, 4, 6), v) for v in (-1.0, 0.0, 1.0)])
    sheet = np.asarray(image_grid.grid(x, columns=2, gap=2))
    assert sheet.shape == (2 * 6 + 2, 2 * 8 + 2, 3)
    assert sheet[2, 2, 0] == 0 and sheet[2, 10, 0] == 128 and sheet[8, 2, 0] == 255
    assert (sheet[:2] == 255).all() and (sheet[:, 8:10] == 255).all() and (sheet[8:, 10:] == 255).all()


def test_small_images_are_enlarged_without_smoothing(tmp_path):
    x = torch.tensor([[-1.0, 1.0], [1.0, -1.0]]).expand(1, 3, 2, 2)
    image_grid.save_grid(x, tmp_path / "deep" / "grid.png", columns=1)
    sheet = np.asarray(Image.open(tmp_path / "deep" / "grid.png"))
    assert sheet.shape == (100, 100, 3) and set(np.unique(sheet)) == {0, 255}


def test_the_plot_has_a_panel_per_metric_with_two_values(tmp_path):
    lines = [{"step": i, "loss": 1 / (i + 1), "lr": None if i % 2 else 0.1} for i in range(50)] + [
        {"step": 50, "psnr": 3}
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    image_grid.plot_curves(tmp_path / "m.jsonl", tmp_path / "c.png", ("loss", "lr", "psnr", "nothing"))
    image = Image.open(tmp_path / "c.png")
    assert image.size == (640, 400)  # psnr is one point
    assert len(image.getcolors(100000)) > 3
    image_grid.plot_curves(tmp_path / "m.jsonl", tmp_path / "none.png", ("nothing",))
    assert not (tmp_path / "none.png").exists()
    image_grid.plot_curves(tmp_path / "nowhere.jsonl", tmp_path / "none.png", ("loss",))


def test_a_constant_metric_is_plotted(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"step": 1, "loss": 2}\n{"step": 2, "loss": 2}\n')
    image_grid.plot_curves(tmp_path / "m.jsonl", tmp_path / "c.png", ("loss",))
    assert (tmp_path / "c.png").exists()
