"""An interrupted and resumed run equals an uninterrupted one."""

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
    files_in,
    metrics_of,
    tensors_of,
)

from latentdiff.training.log import Log

STAGES = {"one": STAGE_ONE, "two": STAGE_TWO}


@pytest.fixture(params=["one", "two"])
def stage(request) -> str:
    return request.param


@pytest.fixture
def finished_run(request, stage):
    return request.getfixturevalue(f"stage_{stage}_run")


def last_checkpoint(run):
    return tensors_of(run / "checkpoints" / "step_00000020")


def test_ten_steps_and_ten_more_equal_twenty(stage, finished_run, runs):
    call(*STAGES[stage], *TWENTY, "train.steps=10", "name=run")
    call(*STAGES[stage], *TWENTY, "name=run")
    assert_same_tensors(last_checkpoint(runs / "run"), last_checkpoint(finished_run))
    assert_same_tensors(tensors_of(runs / "run"), tensors_of(finished_run))  # the final weights
    trained = [row for row in metrics_of(runs / "run") if "lr" in row]
    assert trained == [row for row in metrics_of(finished_run) if "lr" in row]


def test_a_run_with_dropout_resumes_exactly(stage, runs):
    argv = (*STAGES[stage], f"{'autoencoder' if stage == 'one' else 'unet'}.dropout=0.5", "train.val_every=9",
             "train.sample_every=9", "train.checkpoint_every=2", "data.val_count=2", "data.count=8")  # fmt: skip
    for name, steps in (("whole", 4), ("run", 2), ("run", 4)):
        call(*argv, f"train.steps={steps}", f"name={name}")
    last = "checkpoints/step_00000004"
    assert_same_tensors(tensors_of(runs / "run" / last), tensors_of(runs / "whole" / last))


def test_a_run_that_is_stopped_by_a_signal_saves_and_resumes(stage, finished_run, runs, monkeypatch, capsys):
    report = Log.report

    def report_and_stop(log, step, **values):
        if step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return report(log, step, **values)

    with monkeypatch.context() as patch:
        patch.setattr(Log, "report", report_and_stop)
        with pytest.raises(SystemExit) as exit_info:
            call(*STAGES[stage], *TWENTY, "name=run")
    assert exit_info.value.code == 128 + signal.SIGTERM
    assert "stopped by SIGTERM after step 7" in capsys.readouterr().out
    assert not (runs / "run" / "model.safetensors").exists()
    call(*STAGES[stage], *TWENTY, "name=run")
    assert "resumed at step 7" in capsys.readouterr().out
    assert_same_tensors(last_checkpoint(runs / "run"), last_checkpoint(finished_run))
    assert metrics_of(runs / "run") == metrics_of(finished_run)


def test_a_run_that_was_killed_resumes_from_its_checkpoint(stage, finished_run, copy_run):
    run = copy_run(finished_run)
    shutil.rmtree(run / "checkpoints" / "step_00000020")
    (run / "model.safetensors").unlink()
    metrics = run / "metrics.jsonl"
    metrics.write_text(metrics.read_text()[:-20])  # killed while writing a line
    call(*STAGES[stage], *TWENTY, "name=run")
    assert_same_tensors(last_checkpoint(run), last_checkpoint(finished_run))
    assert metrics_of(run) == metrics_of(finished_run)


def test_codebook_usage_is_resumed(runs):
    vq = (*TWENTY, "autoencoder.bottleneck=VQ", "autoencoder.bottleneck.codebook_size=32",
          "autoencoder.bottleneck.reset_after=3", "train.log_every=5")  # fmt: skip
    call(*STAGE_ONE, *vq, "name=whole")
    call(*STAGE_ONE, *vq, "train.steps=10", "name=run")
    call(*STAGE_ONE, *vq, "name=run")
    assert_same_tensors(last_checkpoint(runs / "run"), last_checkpoint(runs / "whole"))
    assert "codebook.idle" in last_checkpoint(runs / "run")


def test_a_resumed_run_that_differs_is_refused_by_field(stage, finished_run, copy_run, refused):
    run = copy_run(finished_run)
    before = {path: (run / path).stat().st_mtime_ns for path in files_in(run)}
    error = refused(*STAGES[stage], *TWENTY, "train.lr=0.5", "train.steps=30", "name=run")
    assert "train.lr" in error and "0.5" in error and ("0.002" if stage == "one" else "0.001") in error
    assert {path: (run / path).stat().st_mtime_ns for path in files_in(run)} == before


def test_a_run_of_the_other_stage_is_refused(stage_one_run, copy_run, refused):
    copy_run(stage_one_run)
    assert "AutoencoderRecipe" in refused(*STAGE_TWO, "name=run")


def test_starting_a_finished_run_again_changes_no_weight(stage, finished_run, copy_run):
    run = copy_run(finished_run)
    call(*STAGES[stage], *TWENTY, "name=run")
    assert_same_tensors(tensors_of(run), tensors_of(finished_run))
    assert_same_tensors(last_checkpoint(run), last_checkpoint(finished_run))


def test_more_steps_are_recorded_in_the_recipe(stage_two_run, copy_run):
    run = copy_run(stage_two_run)
    call(*STAGE_TWO, *TWENTY, "train.steps=22", "name=run")
    assert '"steps": 22' in (run / "recipe.json").read_text()
    assert metrics_of(run)[-1]["step"] == 22


def test_the_oldest_checkpoints_are_pruned(runs):
    call(*STAGE_TWO, "train.steps=8", "train.checkpoint_every=2", "train.keep_checkpoints=2", "name=run")
    assert [p.name for p in sorted((runs / "run" / "checkpoints").iterdir())] == ["step_00000006", "step_00000008"]
