import copy

import pytest
import torch
from test_training_optim import update
from torch import nn

from latentdiff.config import UserError
from latentdiff.training import muon, optim
from latentdiff.training.settings import TrainConfig


def settings(**changes):
    return TrainConfig(
        **{"optimizer": "muon", "lr": 0.01, "grad_clip": 0.0, "weight_decay": 0.1, "precision": "fp32"} | changes
    )


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 16, 3), nn.Conv2d(16, 24, 3), nn.Flatten(), nn.Linear(24, 32), nn.Linear(32, 32),
                         nn.Linear(32, 32, bias=False), nn.LayerNorm(32), nn.Linear(32, 3))  # fmt: skip


def backward(model, seed):
    model(torch.randn(6, 4, 5, 5, generator=torch.Generator().manual_seed(seed))).square().sum().backward()


@pytest.mark.parametrize("shape", [(3, 24, 60), (2, 60, 24), (1, 32, 40)])
def test_the_update_keeps_the_singular_vectors_with_singular_values_near_one(shape):
    """U S V' becomes nearly U V', with singular values of about 0.7 to 1.2 (Jordan et al.)."""
    torch.manual_seed(0)
    u, s, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    assert s.min() > 0.01 * s.norm(dim=1).max()  # what five iterations reach
    result = muon.orthogonalize(u @ torch.diag_embed(s) @ v)
    inner = u.mT @ result @ v.mT  # diagonal if the vectors are kept
    values = inner.diagonal(dim1=1, dim2=2)
    assert (inner - torch.diag_embed(values)).abs().max() < 1e-4
    assert values.min() > 0.6 and values.max() < 1.3
    assert s.max() / s.min() > 3  # they differed before


def test_matrices_between_the_first_and_last_layer_are_orthogonalized_and_nothing_else():
    model = network()
    hidden = {id(p) for p in muon.hidden_matrices(model)}
    assert [i for i, layer in enumerate(model) if id(getattr(layer, "weight", None)) in hidden] == [1, 3, 4, 5]
    table = nn.Embedding(100, 32)
    assert not list(muon.hidden_matrices(table))


def test_first_step_is_the_formula_and_adamw_elsewhere():
    """Hidden: weights decay, then go 0.2 sqrt(longer side) along the orthogonal gradient. Others: torch's AdamW."""
    model, reference = network(), network()
    optimizer, plain = (
        optim.build_optimizer(model, settings()),
        optim.build_optimizer(reference, settings(optimizer="adamw")),
    )
    backward(model, 0), backward(reference, 0)
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    update(optimizer, settings(), 0.01), update(plain, settings(), 0.01)
    other = dict(reference.named_parameters())
    for name, p in model.named_parameters():
        if name in ("1.weight", "3.weight", "4.weight", "5.weight"):
            gradient = gradients[name].flatten(1)
            update_ = muon.orthogonalize(gradient[None])[0]
            expected = before[name] * (1 - 0.01 * 0.1) - 0.01 * 0.2 * max(gradient.shape) ** 0.5 * update_.view_as(p)
            assert torch.allclose(p, expected, atol=1e-5), name
            assert not torch.allclose(p, other[name], atol=1e-4)
        else:
            assert torch.allclose(p, other[name], atol=1e-7), name


def test_the_momentum_is_that_of_nesterov():
    """After two steps the update is that of 0.05 g + 0.95 m with m = 0.05 (0.95 g1 + g2)."""
    torch.manual_seed(0)
    model, train = nn.Linear(16, 20, bias=False), settings(weight_decay=0.0)
    optimizer = optim.build_optimizer(model, train)
    first, second = torch.randn(2, 20, 16)
    model.weight.grad = first.clone()
    update(optimizer, train, 0.01)
    before = model.weight.detach().clone()
    model.weight.grad = second.clone()
    update(optimizer, train, 0.01)
    direction = 0.05 * second + 0.95 * 0.05 * (0.95 * first + second)
    expected = before - 0.01 * 0.2 * 20**0.5 * muon.orthogonalize(direction[None])[0]
    assert torch.allclose(model.weight, expected, atol=1e-5)
    size = (model.weight - before).detach().square().mean().sqrt() / 0.01
    assert size == pytest.approx(0.2, rel=0.25)  # about that of AdamW


def test_weak_directions_are_learned_as_fast_as_strong_ones():
    """A linear map whose inputs lie almost in a plane, in a rotated basis."""
    torch.manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(32, 32)).Q
    inputs = torch.randn(512, 32) * torch.logspace(0, -2, 32) @ rotation
    target = torch.randn(32, 32) / 32**0.5

    def error(name):
        model, train = nn.Linear(32, 32, bias=False), settings(optimizer=name, weight_decay=0.0, steps=200)
        nn.init.zeros_(model.weight)
        optimizer = optim.build_optimizer(model, train)
        for step in range(200):
            (model(inputs) - inputs @ target.T).square().sum(1).mean().backward()
            update(optimizer, train, 0.02 * (1 - step / 200))
        return (model.weight - target).square().mean().item()

    assert error("muon") < 0.5 * error("adamw")


def test_bf16_gives_the_same_direction():
    torch.manual_seed(0)
    matrices = torch.randn(3, 24, 60)
    full, half = muon.orthogonalize(matrices), muon.orthogonalize(matrices.bfloat16())
    assert half.dtype == torch.bfloat16
    assert torch.cosine_similarity(full.flatten(), half.float().flatten(), dim=0) > 0.99


@pytest.mark.parametrize(
    "precision, dtype", [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float32)]
)
def test_products_are_not_computed_in_fp16_where_small_gradients_underflow(precision, dtype):
    assert optim.build_optimizer(network(), settings(precision=precision)).dtype == dtype


def test_a_network_without_hidden_matrices_trains_as_with_adamw():
    model = nn.Linear(4, 2)
    other = copy.deepcopy(model)
    for m, name in ((model, "muon"), (other, "adamw")):
        train = settings(optimizer=name)
        m(torch.ones(1, 4)).sum().backward()
        update(optim.build_optimizer(m, train), train, 0.01)
    assert torch.equal(model.weight, other.weight)


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(UserError, match="train.optimizer is 'lion'; it must be adamw or muon"):
        TrainConfig(optimizer="lion")
