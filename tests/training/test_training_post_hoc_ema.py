"""Post-hoc EMAs, compared with EMAs computed during training."""

import numpy as np
import pytest
import torch
from torch import nn

from latentdiff.config import UserError
from latentdiff.training.post_hoc_ema import PostHocEMA, gamma_of, main, reconstruct, solve_weights


@pytest.mark.parametrize("width", [0.02, 0.05, 0.1, 0.2])
def test_the_weights_t_to_the_gamma_have_the_width(width):
    """The standard deviation of t on 0..1 under the density (gamma + 1)·t^gamma."""
    gamma, t = gamma_of(width), (np.arange(400_000) + 0.5) / 400_000
    density = (gamma + 1) * t**gamma / 400_000
    mean = (density * t).sum()
    assert np.sqrt((density * (t - mean) ** 2).sum()) == pytest.approx(width, rel=1e-4)


def test_gamma_equals_the_published_values():
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.01) and gamma_of(0.1) == pytest.approx(6.94, abs=0.01)


def test_the_ema_weights_step_t_by_its_power():
    width, steps = 0.1, 400
    gamma = gamma_of(width)
    weights = []
    for spike in (100, 250, 399):
        model = nn.Linear(1, 1, bias=False)
        ema = PostHocEMA(model, (width,))
        for step in range(steps):
            nn.init.constant_(model.weight, 1.0 if step == spike else 0.0)
            ema.update(step)
        weights.append(ema.models["0.1"].weight.item())
    expected = [(gamma + 1) / steps * ((spike + 1) / steps) ** gamma for spike in (100, 250, 399)]
    assert weights == pytest.approx(expected, rel=0.05)


def test_the_weights_select_a_snapshot_of_the_target_width():
    snapshots = [(0.05, 100), (0.1, 100), (0.05, 200), (0.1, 200)]
    assert solve_weights(snapshots, (0.1, 200)).tolist() == pytest.approx([0, 0, 0, 1], abs=1e-6)
    assert solve_weights(snapshots, (0.07, 200)).sum() == pytest.approx(1)


def test_an_ema_of_another_width_is_reconstructed(tmp_path):
    torch.manual_seed(0)
    model, steps = nn.Linear(8, 8), 800
    emas = PostHocEMA(model, (0.05, 0.1, 0.075))  # the third for comparison
    for step in range(steps):
        with torch.no_grad():
            for p in model.parameters():
                p += torch.randn_like(p) * 0.1  # a random walk
        emas.update(step)
        if (step + 1) % 100 == 0:
            expected = emas.models.pop("0.075")
            emas.save(tmp_path, step + 1)
            emas.models["0.075"] = expected
    tensors = reconstruct(tmp_path, 0.075)
    error = (tensors["weight"] - expected.weight).norm()
    errors = [(emas.models[width].weight - expected.weight).norm() for width in ("0.05", "0.1")]
    assert error < 0.1 * min(errors)


def test_load_restores_the_emas():
    model = nn.Linear(2, 2)
    a = PostHocEMA(model, (0.05,))
    a.update(0)
    b = PostHocEMA(nn.Linear(2, 2), (0.05,))
    b.load({name: {k: v.clone() for k, v in tensors.items()} for name, tensors in a.tensors().items()})
    assert torch.equal(a.models["0.05"].weight, b.models["0.05"].weight)


def test_wrong_arguments_raise_an_error(tmp_path):
    with pytest.raises(UserError, match="ema_widths"):
        reconstruct(tmp_path, 0.1)
    with pytest.raises(UserError, match="RUN WIDTH OUTPUT"):
        main(["one"])
    with pytest.raises(UserError, match="no run at nowhere"):
        main(["nowhere", "0.1", "out"])
    (tmp_path / "recipe.json").write_text("{}")
    for width in ("wide", "0.5"):
        with pytest.raises(UserError, match=f"WIDTH is {width}"):
            main([str(tmp_path), width, "out"])
