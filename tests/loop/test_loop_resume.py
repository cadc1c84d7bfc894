"""A run that was broken off equals one that was not."""

import os
import shutil
import signal

import pytest
from conftest import (
    STAGE_ONE,
    STAGE_TWO,
    TWENTY,
    assert_same_tensors,
    call,
    rows,
    tensors_of,
    written,
)

from latentdiff.training.log import Log

STAGES = {"one": STAGE_ONE, "two": STAGE_TWO}


@pytest.fixture(params=["one", "two"])
def stage(request) -> str:
    return request.param


@pytest.fixture
def unbroken(request, stage):
    return request.getfixturevalue(f"unbroken_{stage}")


def newest(run):
    return tensors_of(run / "checkpoints" / "step_00000020")


def test_ten_steps_and_ten_more_equal_twenty(stage, unbroken, runs):
    call(*STAGES[stage], *TWENTY, "train.steps=10", "name=run")
    call(*STAGES[stage], *TWENTY, "name=run")
    assert_same_tensors(newest(runs / "run"), newest(unbroken))
    assert_same_tensors(tensors_of(runs / "run"), tensors_of(unbroken))  # the finished weights
    trained = [row for row in rows(runs / "run") if "lr" in row]
    assert trained == [row for row in rows(unbroken) if "lr" in row]


def test_a_run_with_dropout_goes_on_exactly_too(stage, runs):
    words = (*STAGES[stage], f"{'autoencoder' if stage == 'one' else 'unet'}.dropout=0.5", "train.val_every=9",
             "train.sample_every=9", "train.checkpoint_every=2", "data.val_count=2", "data.count=8")  # fmt: skip
    for name, steps in (("whole", 4), ("run", 2), ("run", 4)):
        call(*words, f"train.steps={steps}", f"name={name}")
    last = "checkpoints/step_00000004"
    assert_same_tensors(tensors_of(runs / "run" / last), tensors_of(runs / "whole" / last))


def test_a_run_that_is_told_to_stop_saves_and_goes_on(stage, unbroken, runs, monkeypatch, capsys):
    report = Log.report

    def stopping(log, step, **values):
        if step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return report(log, step, **values)

    with monkeypatch.context() as patch:
        patch.setattr(Log, "report", stopping)
        with pytest.raises(SystemExit) as leaving:
            call(*STAGES[stage], *TWENTY, "name=run")
    assert leaving.value.code == 128 + signal.SIGTERM
    assert "stopped by SIGTERM after step 7" in capsys.readouterr().out
    assert not (runs / "run" / "model.safetensors").exists()
    call(*STAGES[stage], *TWENTY, "name=run")
    assert "resumed at step 7" in capsys.readouterr().out
    assert_same_tensors(newest(runs / "run"), newest(unbroken))
    assert rows(runs / "run") == rows(unbroken)


def test_a_run_that_was_killed_goes_on_from_its_checkpoint(stage, unbroken, copy_of):
    run = copy_of(unbroken)
    shutil.rmtree(run / "checkpoints" / "step_00000020")
    (run / "model.safetensors").unlink()
    metrics = run / "metrics.jsonl"
    metrics.write_text(metrics.read_text()[:-20])  # killed while it wrote
    call(*STAGES[stage], *TWENTY, "name=run")
    assert_same_tensors(newest(run), newest(unbroken))
    assert rows(run) == rows(unbroken)


def test_dead_codes_and_codebook_counts_are_resumed(runs):
    vq = (*TWENTY, "autoencoder.bottleneck=VQ", "autoencoder.bottleneck.codebook_size=32",
          "autoencoder.bottleneck.reset_after=3", "train.log_every=5")  # fmt: skip
    call(*STAGE_ONE, *vq, "name=whole")
    call(*STAGE_ONE, *vq, "train.steps=10", "name=run")
    call(*STAGE_ONE, *vq, "name=run")
    assert_same_tensors(newest(runs / "run"), newest(runs / "whole"))
    assert "codes.idle" in newest(runs / "run")


def test_a_resumed_run_that_differs_is_refused_by_field(stage, unbroken, copy_of, refused):
    run = copy_of(unbroken)
    before = {path: (run / path).stat().st_mtime_ns for path in written(run)}
    error = refused(*STAGES[stage], *TWENTY, "train.lr=0.5", "train.steps=30", "name=run")
    assert "train.lr" in error and "0.5" in error and ("0.002" if stage == "one" else "0.001") in error
    assert {path: (run / path).stat().st_mtime_ns for path in written(run)} == before


def test_a_run_of_the_other_stage_is_refused(unbroken_one, copy_of, refused):
    copy_of(unbroken_one)
    assert "AutoencoderRecipe" in refused(*STAGE_TWO, "name=run")


def test_a_finished_run_started_again_changes_no_weight(stage, unbroken, copy_of):
    run = copy_of(unbroken)
    call(*STAGES[stage], *TWENTY, "name=run")
    assert_same_tensors(tensors_of(run), tensors_of(unbroken))
    assert_same_tensors(newest(run), newest(unbroken))


def test_more_steps_are_recorded_in_the_recipe(unbroken_two, copy_of):
    run = copy_of(unbroken_two)
    call(*STAGE_TWO, *TWENTY, "train.steps=22", "name=run")
    assert '"steps": 22' in (run / "recipe.json").read_text()
    assert rows(run)[-1]["step"] == 22


def test_the_oldest_checkpoints_are_pruned(runs):
    call(*STAGE_TWO, "train.steps=8", "train.checkpoint_every=2", "train.keep_checkpoints=2", "name=run")
    assert [p.name for p in sorted((runs / "run" / "checkpoints").iterdir())] == ["step_00000006", "step_00000008"]
