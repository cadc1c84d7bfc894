"""The schedule of the discriminator; its training steps are tested in tests/loop."""

import pytest

from latentdiff.autoencoder.discriminator import DiscriminatorConfig
from latentdiff.stage_one.adversarial import Adversarial
from latentdiff.training.distributed import SINGLE_PROCESS
from latentdiff.training.settings import TrainConfig


def adversarial(steps: int, **changes) -> Adversarial:
    return Adversarial(DiscriminatorConfig(channels=8, layers=1, **changes), TrainConfig(steps=steps), SINGLE_PROCESS)


def test_the_discriminator_is_trained_before_the_adversarial_loss_rises_linearly():
    model = adversarial(100, weight=0.5, train_from=10, start=20, ramp=5)
    assert [model.train_disc_at(step) for step in (9, 10, 99)] == [False, True, True]
    weights = [model.disc_weight_at(step) for step in (0, 19, 20, 21, 24, 25, 99)]
    assert weights == pytest.approx([0, 0, 0.1, 0.2, 0.5, 0.5, 0.5])


def test_without_delay_and_ramp_it_is_the_original_schedule():
    model = adversarial(10, weight=0.75, train_from=0, start=0, ramp=0)
    assert model.train_disc_at(0) and model.disc_weight_at(0) == 0.75


def test_weight_zero_means_no_discriminator():
    model = adversarial(10, weight=0.0, start=0)
    assert model.network is None and not model.train_disc_at(5) and model.disc_weight_at(5) == 0
