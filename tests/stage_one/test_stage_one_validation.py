"""Metrics and warnings of stage one's validation; the loop tests measure them on real runs."""

import string

import pytest
import torch

from latentdiff.autoencoder.bottleneck import moment_sums
from latentdiff.recipe import AutoencoderRecipe
from latentdiff.stage_one.validation import RULES, ReconstructionValidator
from latentdiff.training.distributed import SINGLE_PROCESS
from latentdiff.training.log import Log


@pytest.fixture
def validator(tmp_path):
    """validator() -> a validator without held-out data, whose metrics the test supplies."""

    def validator():
        recipe = AutoencoderRecipe()
        log = Log(tmp_path, SINGLE_PROCESS, 0, recipe.train)
        return ReconstructionValidator(recipe, SINGLE_PROCESS, [], None, None, log)

    return validator


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_every_warning_contains_its_duration_and_the_value(rule):
    fields = {name for _, name, _, _ in string.Formatter().parse(rule.message) if name}
    assert fields == {"value", "steps"}
    assert "for 10 steps" in rule.message.format(value=0.5, steps=10)


def test_a_fall_of_the_psnr_is_reported_once(validator, capsys):
    validator = validator()
    latent_sums = torch.tensor([[1.0] * 4, [0.0] * 4, [1.0] * 4, [0.0] * 4])  # as moment_sums
    for step, psnr in ((10, 20.0), (20, 18.0), (30, 16.0)):
        validator.report(step, {"psnr": psnr}, latent_sums)
    out = capsys.readouterr().out
    assert out.count("WARNING") == 1 and "PSNR fell from 20.0 to 16.0 dB" in out


def test_the_best_psnr_survives_a_restart(validator, tmp_path, capsys):
    lines = '{"step": 0, "seconds": 1, "psnr": 20.0}\n{"step": 0, "seconds": 1, "psnr": null}\n'
    (tmp_path / "metrics.jsonl").write_text(lines)
    validator().report(10, {"psnr": 16.0}, torch.ones(4, 4))
    assert "PSNR fell from 20.0 to 16.0 dB" in capsys.readouterr().out


def test_a_channel_that_is_almost_pure_noise_counts_as_unused(validator):
    metrics = {"psnr": 20.0}
    latent_sums = torch.tensor([[1.0, 1.0], [1.0, 0.0], [5.0, 0.01], [0.0, 1.0]], dtype=torch.float64)
    validator().report(10, metrics, latent_sums)
    assert metrics["unused_channels"] == 0.5 and metrics["latent_std"] == pytest.approx(((4 + 0.01) / 2) ** 0.5)


def test_the_reported_standard_deviation_is_that_of_the_latents(validator):
    metrics = {"psnr": 20.0}
    mean = 3 * torch.randn(8, 4, 16, 16, generator=torch.Generator().manual_seed(0)) + 1
    validator().report(10, metrics, moment_sums(mean, torch.zeros_like(mean)))
    assert metrics["latent_std"] == pytest.approx(3, rel=0.02) and metrics["unused_channels"] == 0
