"""The classifier of noisy latents."""

import pytest
import torch

from latentdiff.diffusion.classifier import Classifier
from latentdiff.diffusion.unet import UNetConfig

CONFIG = UNetConfig(
    channels=8, channel_mult=(1, 2), num_res_blocks=1, attention_levels=(1,), num_heads=2, norm_groups=4
)
Z, T = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.0, 400.5, 999.0])


def new_classifier() -> Classifier:
    torch.manual_seed(0)
    return Classifier(CONFIG, 2, 5)


@pytest.mark.parametrize("side", [8, 5, 16])
def test_latents_of_any_size_get_logits(side: int) -> None:
    assert new_classifier()(torch.randn(3, 2, side, side), T).shape == (3, 5)


def test_log_p_is_that_of_the_label() -> None:
    classifier = new_classifier()
    log_p = torch.stack([classifier.log_p(Z, T, torch.full((3,), c)) for c in range(5)], dim=1)
    assert torch.allclose(log_p.exp().sum(1), torch.ones(3), atol=1e-5)
    assert torch.equal(classifier.log_p(Z, T, torch.tensor([4, 0, 2])), log_p[torch.arange(3), torch.tensor([4, 0, 2])])
    assert classifier.to(torch.bfloat16).log_p(Z.bfloat16(), T, torch.tensor([0, 1, 2])).dtype == torch.float32


def test_the_timestep_changes_the_output_and_every_parameter_gets_a_gradient() -> None:
    classifier = new_classifier()
    optimizer = torch.optim.SGD(classifier.parameters(), lr=0.1)
    for _ in range(2):  # layers before one initialized to zero get no gradient in the first step
        optimizer.zero_grad()
        classifier.log_p(Z, T, torch.tensor([0, 1, 2])).sum().neg().backward()
        optimizer.step()
    assert not [name for name, p in classifier.named_parameters() if not p.grad.any()]
    assert not torch.allclose(classifier(Z, T), classifier(Z, T.flip(0)), atol=1e-4)
