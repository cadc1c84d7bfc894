"""What is said while a run trains; that it is measured rightly is tested by the loops."""

import string
from types import SimpleNamespace

import pytest
import torch

from latentdiff.recipe import AutoencoderRecipe, DiffusionRecipe
from latentdiff.stage_one.validation import STAGE_ONE, ReconstructionValidator
from latentdiff.stage_two.validation import STAGE_TWO, DenoisingValidator
from latentdiff.training.distributed import World
from latentdiff.training.log import Log

SINGLE_PROCESS = World(0, 1, torch.device("cpu"))


@pytest.fixture
def watch(tmp_path):
    """watch(stage) -> one without held-out data, whose numbers are given by hand."""

    def watch(stage):
        recipe = (AutoencoderRecipe if stage == 1 else DiffusionRecipe)()
        log = Log(tmp_path, SINGLE_PROCESS, 0, recipe.train)
        if stage == 1:
            return ReconstructionValidator(recipe, SINGLE_PROCESS, [], None, None, log)
        latents = SimpleNamespace(tokenizer=None)
        return DenoisingValidator(recipe, SINGLE_PROCESS, latents, [], log)

    return watch


@pytest.mark.parametrize("rule", [*STAGE_ONE, *STAGE_TWO], ids=lambda rule: rule.name)
def test_every_rule_says_for_how_long_and_what_would_help(rule):
    fields = {name for _, name, _, _ in string.Formatter().parse(rule.words) if name}
    assert fields == {"value", "steps"}
    assert "for 10 steps" in rule.words.format(value=0.5, steps=10)


def test_pictures_that_get_worse_are_told(watch, capsys):
    watch = watch(1)
    spread = torch.tensor([[1.0] * 4, [0.0] * 4, [1.0] * 4, [0.0] * 4])  # count, mean, mean square, noise per channel
    for step, psnr in ((10, 20.0), (20, 18.0), (30, 16.0)):
        watch.report(step, {"psnr": psnr}, spread)
    out = capsys.readouterr().out
    assert out.count("WARNING") == 1 and "PSNR fell from 20.0 to 16.0 dB" in out


def test_a_channel_that_holds_noise_alone_is_counted(watch):
    watch, values = watch(1), {"psnr": 20.0}
    watch.report(10, values, torch.tensor([[1.0, 1.0], [1.0, 0.0], [5.0, 0.01], [0.0, 1.0]], dtype=torch.float64))
    assert values["idle_channels"] == 0.5 and values["latent_std"] == pytest.approx(((4 + 0.01) / 2) ** 0.5)


def test_learning_by_heart_is_told(watch, capsys):
    watch = watch(2)
    for step, loss in ((10, 0.5), (20, 0.4), (30, 0.45), (40, 0.5)):
        watch.report(step, {"val_loss": loss})
    out = capsys.readouterr().out
    assert out.count("WARNING") == 1 and "0.4000 at its best and is 0.5000 now" in out


def test_the_best_of_before_a_restart_is_remembered(watch, tmp_path, capsys):
    rows = '{"step": 0, "seconds": 1, "psnr": 20.0}\n{"step": 0, "seconds": 1, "psnr": null, "val_loss": 0.4}\n'
    (tmp_path / "metrics.jsonl").write_text(rows)
    one, two = watch(1), watch(2)
    one.report(10, {"psnr": 16.0}, torch.ones(4, 4))
    two.report(10, {"val_loss": 0.5})
    out = capsys.readouterr().out
    assert "PSNR fell from 20.0 to 16.0 dB" in out and "0.4000 at its best and is 0.5000 now" in out
