import pytest
import torch
from torch import nn

from latentdiff.training.ema import EMA

FINITE = torch.tensor(1.0)


def test_the_ema_follows_its_formula():
    model = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(model.weight)
    ema, expected = EMA(model, 0.5), 0.0
    for step, value in enumerate([1.0, 3.0, -2.0, 5.0, 8.0, 1.0]):
        nn.init.constant_(model.weight, value)
        ema.update(step, FINITE)
        decay = min(0.5, (2 + step) / (11 + step))  # the original's num_updates counts from 1
        expected += (1 - decay) * (value - expected)
        assert ema.model.weight.flatten().tolist() == pytest.approx([expected] * 2)


def test_the_decay_is_reached_gradually():
    model = nn.Linear(1, 1)
    ema = EMA(model, 0.9999)
    nn.init.constant_(model.weight, 5.0)
    ema.update(0, FINITE)
    early = (ema.model.weight - 5).abs().item()
    ema = EMA(nn.Linear(1, 1), 0.9999)
    nn.init.zeros_(ema.model.weight)
    nn.init.constant_(ema.source.weight, 5.0)
    ema.update(10**9, FINITE)
    assert ema.model.weight.item() == pytest.approx(5e-4, rel=1e-3)
    assert early < 2  # the first update is large


@pytest.mark.parametrize("norm", [float("nan"), float("inf")])
def test_a_skipped_step_does_not_change_the_ema(norm):
    model = nn.Linear(2, 2)
    ema = EMA(model, 0.5)
    nn.init.constant_(model.weight, 9.0)  # as after many steps
    before = ema.model.weight.clone()
    ema.update(3, torch.tensor(norm))
    assert torch.equal(ema.model.weight, before)
    ema.update(4, FINITE)
    assert not torch.equal(ema.model.weight, before)


def test_buffers_are_copied_and_no_parameter_is_trained():
    model = nn.BatchNorm2d(2)
    ema = EMA(model, 0.99)
    model(torch.randn(4, 2, 3, 3) + 7)
    ema.update(0, FINITE)
    assert torch.equal(ema.model.running_mean, model.running_mean) and ema.model.running_mean[0] > 0.3
    assert not any(p.requires_grad for p in ema.model.parameters()) and not ema.model.training
    assert ema.model.weight is not model.weight
