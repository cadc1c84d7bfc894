"""Warnings of stage two's validation; the loop tests measure them on real runs."""

import string
from types import SimpleNamespace

import pytest

from latentdiff.recipe import DiffusionRecipe
from latentdiff.stage_two.validation import RULES, DenoisingValidator
from latentdiff.training.distributed import SINGLE_PROCESS
from latentdiff.training.log import Log


@pytest.fixture
def validator(tmp_path):
    """validator() -> a validator without held-out data, whose metrics the test supplies."""

    def validator():
        recipe = DiffusionRecipe()
        log = Log(tmp_path, SINGLE_PROCESS, 0, recipe.train)
        return DenoisingValidator(recipe, SINGLE_PROCESS, SimpleNamespace(), [], None, log)

    return validator


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_every_warning_contains_its_duration_and_the_value(rule):
    fields = {name for _, name, _, _ in string.Formatter().parse(rule.message) if name}
    assert fields == {"value", "steps"}
    assert "10 steps" in rule.message.format(value=0.5, steps=10)


def test_overfitting_is_reported(validator, capsys):
    validator = validator()
    for step, loss in ((10, 0.5), (20, 0.4), (30, 0.45), (40, 0.5)):
        validator.report(step, {"val_loss": loss})
    out = capsys.readouterr().out
    assert out.count("WARNING") == 1 and "0.4000 at its best and is 0.5000 now" in out


def test_the_best_loss_survives_a_restart(validator, tmp_path, capsys):
    lines = '{"step": 0, "seconds": 1, "val_loss": null}\n{"step": 0, "seconds": 1, "val_loss": 0.4}\n'
    (tmp_path / "metrics.jsonl").write_text(lines)
    validator().report(10, {"val_loss": 0.5})
    assert "0.4000 at its best and is 0.5000 now" in capsys.readouterr().out
