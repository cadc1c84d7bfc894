import pytest
import torch

from latentdiff.autoencoder.discriminator import (
    Discriminator,
    DiscriminatorConfig,
    generator_loss,
    hinge,
    learns_at,
    plan,
    vanilla,
    weight_at,
)
from latentdiff.config import UserError


def small(**changes) -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(DiscriminatorConfig(**{"channels": 8, **changes}))


def pictures(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("layers, side, count", [(3, 70, 2_765_633), (2, 34, 663_361)])
def test_a_patch_has_the_published_size_and_the_network_the_published_parameters(layers, side, count):
    with torch.device("meta"):
        paper = Discriminator(DiscriminatorConfig(layers=layers, norm="batch"))
    assert sum(p.numel() for p in paper.parameters()) == count
    model, x = small(layers=layers, norm="batch").eval(), pictures(1, 3, 128, 128).requires_grad_()
    logits = model(x)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    assert x.grad.abs().sum((0, 1)).any(0).sum() == side


def test_with_group_norm_a_verdict_does_not_depend_on_the_rest_of_the_batch():
    x = pictures(3, 3, 32, 32)
    group, batch = small(norm="group"), small(norm="batch")
    torch.testing.assert_close(group(x)[:1], group(x[:1]))
    assert not torch.allclose(batch(x)[:1], batch(x[:1]), atol=1e-3)


def test_every_parameter_gets_a_gradient_and_logits_are_never_half():
    model = small()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(pictures(1, 3, 32, 32))
    assert logits.dtype == torch.float32
    logits.square().sum().backward()
    assert all(p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("changes, words", [({"norm": "layer"}, "'layer'.*group, batch"), ({"loss": "wgan"}, "'wgan'")])
def test_unknown_names_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        small(**changes)


def test_losses_have_their_closed_forms():
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 1.0])
    assert hinge(real, fake).item() == 0.5 * (0.5 + 1.0)
    assert vanilla(torch.zeros(2), torch.zeros(2)).item() == pytest.approx(torch.log(torch.tensor(2.0)).item())
    assert generator_loss(fake).item() == 1.0


def test_it_learns_before_it_weighs_and_then_rises_linearly():
    config = DiscriminatorConfig(weight=0.5, train_from=10, start=20, ramp=5)
    assert [learns_at(config, step, 100) for step in (9, 10, 99)] == [False, True, True]
    weights = [weight_at(config, step, 100) for step in (0, 19, 20, 21, 24, 25, 99)]
    assert weights == pytest.approx([0, 0, 0.1, 0.2, 0.5, 0.5, 0.5])


def test_times_below_one_are_fractions_of_the_training():
    config = DiscriminatorConfig(train_from=0.25, start=0.5, ramp=0.1)
    assert plan(config, 200) == (50, 100, 20)
    assert plan(DiscriminatorConfig(start=0.5, ramp=7), 200) == (90, 100, 7)  # learning begins at 0.9 of start


def test_without_a_delay_it_is_the_original_schedule():
    config = DiscriminatorConfig(weight=0.75, train_from=0, start=0, ramp=0)
    assert learns_at(config, 0, 10) and weight_at(config, 0, 10) == 0.75


def test_weight_zero_means_no_discriminator_at_all():
    config = DiscriminatorConfig(weight=0.0, start=0)
    assert not learns_at(config, 5, 10) and weight_at(config, 5, 10) == 0


def test_weighing_before_learning_is_refused():
    with pytest.raises(UserError, match="train_from is step 90 and discriminator.start step 50"):
        weight_at(DiscriminatorConfig(train_from=90, start=0.5), 0, 100)
