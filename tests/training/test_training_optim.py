import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from latentdiff.training import optim
from latentdiff.training.ema import EMA
from latentdiff.training.settings import TrainConfig


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 16), nn.LayerNorm(16), nn.Linear(16, 20), nn.Linear(20, 2))


def settings(**changes):
    return TrainConfig(**{"lr": 0.1, "grad_clip": 0.0, "steps": 100} | changes)


def update(optimizer, cfg, lr):
    """One step as the training loops do it; returns the gradient norm."""
    optim.set_lr(optimizer, lr)
    norm = optim.clip_grad_norm_(optimizer, torch.amp.GradScaler("cpu", enabled=False), cfg.grad_clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def backward(model, seed, poison=None):
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
    model(x).square().sum().backward()
    if poison is not None:
        model[0].weight.grad[1, 2] = poison


# ---- learning rate


def test_the_learning_rate_warms_up_and_stays():
    lrs = [optim.lr_at(settings(warmup_steps=4), step) for step in range(6)]
    assert lrs == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])


FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
VECTOR = json.loads((FIXTURES / "vectors" / "lr_schedulers.json").read_text())
RELEASED = {  # the two schedules of the released models, as the original release computes them
    "churches_linear": TrainConfig(steps=500_000, lr=1.0, warmup_steps=10_000, lr_start=1e-6),
    "inpainting_cosine": TrainConfig(
        steps=360_000, lr=0.1, lr_schedule="cosine", warmup_steps=1000, lr_start=0.01, lr_decay_end=50_000, lr_end=0.001
    ),
}


@pytest.mark.parametrize("name", RELEASED)
def test_the_learning_rate_is_that_of_the_released_models(name):
    lrs = {step: optim.lr_at(RELEASED[name], int(step)) for step in VECTOR[name]}
    assert lrs == pytest.approx(VECTOR[name], rel=1e-9)
    late = {step: optim.lr_at(RELEASED[name], int(step) + 1) for step in VECTOR[name]}
    assert late != pytest.approx(VECTOR[name], rel=1e-9)


@pytest.mark.parametrize("schedule, half", [("cosine", 0.5), ("linear", 0.5)])
def test_the_learning_rate_decays_to_its_end(schedule, half):
    train = settings(lr_schedule=schedule, warmup_steps=20, lr_end=0.2)
    assert optim.lr_at(train, 20) == pytest.approx(0.1)
    assert optim.lr_at(train, 60) == pytest.approx(0.1 * (0.2 + 0.8 * half))
    assert optim.lr_at(train, 100) == optim.lr_at(train, 150) == pytest.approx(0.02)
    lrs = [optim.lr_at(train, step) for step in range(20, 101)]
    assert lrs == sorted(lrs, reverse=True)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_learning_rate_decays_from_lr_decay_start(schedule):
    train = settings(lr_schedule=schedule, warmup_steps=20, lr_decay_start=0.8)
    lrs = [optim.lr_at(train, step) for step in range(20, 101)]
    assert lrs[:61] == pytest.approx([0.1] * 61) and lrs[70] == pytest.approx(0.05) and lrs[80] == pytest.approx(0)


def test_the_cosine_is_a_cosine():
    train = settings(lr_schedule="cosine")
    assert optim.lr_at(train, 25) == pytest.approx(0.1 * (1 + math.cos(math.pi / 4)) / 2)


# ---- step


def test_a_step_is_adamw_on_clipped_gradients():
    """Against torch's plain, unfused AdamW."""
    model, reference, train = network(), network(), settings(grad_clip=0.5, weight_decay=0.1)
    optimizer = optim.build_optimizer(model, train)
    groups = [{"params": [p for p in reference.parameters() if p.ndim > 1], "weight_decay": 0.1},
              {"params": [p for p in reference.parameters() if p.ndim < 2], "weight_decay": 0.0}]  # fmt: skip
    plain = torch.optim.AdamW(groups, lr=0.1, betas=train.betas, foreach=False, fused=False)
    for step in range(3):
        backward(model, step)
        backward(reference, step)
        norm = update(optimizer, train, 0.1)
        assert norm.item() == pytest.approx(nn.utils.clip_grad_norm_(reference.parameters(), 0.5).item())
        assert norm > 0.5  # it was clipped
        plain.step()
        plain.zero_grad()
        for a, b in zip(model.parameters(), reference.parameters()):
            assert torch.allclose(a, b, atol=1e-6) and a.grad is None


def test_the_learning_rate_of_the_step_is_used():
    model = network()
    before = [p.clone() for p in model.parameters()]
    backward(model, 0)
    update(optim.build_optimizer(model, settings(weight_decay=0.0)), settings(), 0.003)
    largest = max((p - q).abs().max().item() for p, q in zip(model.parameters(), before))
    assert largest == pytest.approx(0.003, rel=1e-3)  # the first step of Adam has the size lr


def test_norms_and_biases_are_not_decayed():
    groups = optim.build_optimizer(network(), settings(weight_decay=0.3)).param_groups
    assert [(group["weight_decay"], len(group["params"])) for group in groups] == [(0.3, 3), (0.0, 5)]


def test_frozen_parameters_are_not_optimized():
    model = network()
    model[0].requires_grad_(False)
    assert sum(len(group["params"]) for group in optim.build_optimizer(model, settings()).param_groups) == 6


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_gradient_that_is_not_finite_changes_nothing(poison, clip, name):
    model, train = network(), settings(grad_clip=clip, optimizer=name)
    optimizer, ema = optim.build_optimizer(model, train), EMA(model, 0.5)
    backward(model, 0)
    ema.update(0, update(optimizer, train, 0.1))
    before = [t.clone() for t in (*model.parameters(), *ema.model.parameters())]
    moments = {name: t.clone() for name, t in optim.optimizer_tensors(optimizer).items()}
    backward(model, 1, poison)
    norm = update(optimizer, train, 0.1)
    ema.update(1, norm)
    assert not torch.isfinite(norm)
    assert all(torch.equal(a, b) for a, b in zip(before, (*model.parameters(), *ema.model.parameters())))
    assert all(torch.equal(moments[name], t) for name, t in optim.optimizer_tensors(optimizer).items())
    assert all(p.grad is None for p in model.parameters())
    backward(model, 2)
    assert torch.isfinite(update(optimizer, train, 0.1))
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters()))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_skipped_first_step_leaves_the_moments_at_zero(name):
    model, train = network(), settings(optimizer=name)
    optimizer = optim.build_optimizer(model, train)
    backward(model, 0, math.nan)
    update(optimizer, train, 0.1)
    assert all(t.abs().max() == 0 for t in optim.optimizer_tensors(optimizer).values())


# ---- saving


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_restored_optimizer_continues_bit_for_bit(name):
    whole, train = network(), settings(betas=(0.8, 0.95), optimizer=name)
    optimizer = optim.build_optimizer(whole, train)
    for step in range(4):
        if step == 2:
            weights = {k: v.clone() for k, v in whole.state_dict().items()}
            saved = {k: v.clone() for k, v in optim.optimizer_tensors(optimizer).items()}
        backward(whole, step)
        update(optimizer, train, 0.01)
    resumed = network()
    resumed.load_state_dict(weights)
    optimizer = optim.build_optimizer(resumed, train)
    optim.load_optimizer(optimizer, saved)
    for step in (2, 3):
        backward(resumed, step)
        update(optimizer, train, 0.01)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters()))


def test_an_optimizer_without_steps_is_restored():
    optimizer = optim.build_optimizer(network(), settings())
    assert optim.optimizer_tensors(optimizer) == {}
    optim.load_optimizer(optimizer, {})


def test_norms_of_modules_add_up_to_the_norm_of_the_model():
    model = network()
    backward(model, 0)
    norms = torch.stack([optim.grad_norm(module) for module in model])
    assert norms.norm().item() == pytest.approx(optim.grad_norm(model).item(), rel=1e-6)
    assert optim.grad_norm(nn.Identity()) == 0
