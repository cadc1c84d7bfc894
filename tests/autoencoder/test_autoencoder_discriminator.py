import pytest
import torch

from latentdiff.autoencoder.discriminator import (
    Discriminator,
    DiscriminatorConfig,
    generator_loss,
    hinge,
    schedule_steps,
    vanilla,
)
from latentdiff.config import UserError


def small(**changes) -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(DiscriminatorConfig(**{"channels": 8, **changes}))


def images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("layers, side, count", [(3, 70, 2_765_633), (2, 34, 663_361)])
def test_a_patch_has_the_published_size_and_the_network_the_published_parameters(layers, side, count):
    with torch.device("meta"):
        paper = Discriminator(DiscriminatorConfig(layers=layers, norm="batch"))
    assert sum(p.numel() for p in paper.parameters()) == count
    model, x = small(layers=layers, norm="batch").eval(), images(1, 3, 128, 128).requires_grad_()
    logits = model(x)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    assert x.grad.abs().sum((0, 1)).any(0).sum() == side


def test_with_group_norm_a_logit_does_not_depend_on_the_rest_of_the_batch():
    x = images(3, 3, 32, 32)
    group, batch = small(norm="group"), small(norm="batch")
    torch.testing.assert_close(group(x)[:1], group(x[:1]))
    assert not torch.allclose(batch(x)[:1], batch(x[:1]), atol=1e-3)


def test_every_parameter_gets_a_gradient_and_logits_are_never_half():
    model = small()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images(1, 3, 32, 32))
    assert logits.dtype == torch.float32
    logits.square().sum().backward()
    assert all(p.grad.any() for p in model.parameters())


@pytest.mark.parametrize(
    "changes, message", [({"norm": "layer"}, "'layer'.*group, batch"), ({"loss": "wgan"}, "'wgan'")]
)
def test_unknown_names_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        small(**changes)


def test_losses_have_their_closed_forms():
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 1.0])
    assert hinge(real, fake).item() == 0.5 * (0.5 + 1.0)
    assert vanilla(torch.zeros(2), torch.zeros(2)).item() == pytest.approx(torch.log(torch.tensor(2.0)).item())
    assert generator_loss(fake).item() == 1.0


def test_times_below_one_are_fractions_of_the_training():
    config = DiscriminatorConfig(train_from=0.25, start=0.5, ramp=0.1)
    assert schedule_steps(config, 200) == (50, 100, 20)
    assert schedule_steps(DiscriminatorConfig(start=0.5, ramp=7), 200) == (90, 100, 7)  # train_from is 0.9 of start


def test_an_adversarial_loss_that_starts_before_the_discriminator_is_trained_is_refused():
    with pytest.raises(UserError, match="train_from is step 90; it must not be after discriminator.start, step 50"):
        schedule_steps(DiscriminatorConfig(train_from=90, start=0.5), 100)
