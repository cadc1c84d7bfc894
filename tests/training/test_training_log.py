import json
import math
import re
import sys
from types import SimpleNamespace

import pytest
import torch

from latentdiff.config import UserError
from latentdiff.training.distributed import World
from latentdiff.training.log import Log, clock, read_metrics
from latentdiff.training.settings import TrainConfig

SINGLE_PROCESS = World(0, 1, torch.device("cpu"))


def started_log(folder, start_step=0, **train):
    log = Log(
        folder, SINGLE_PROCESS, start_step, TrainConfig(**{"steps": 100, "log_every": 2, "batch_size": 4} | train)
    )
    log.start()
    return log


def tensor(value):
    return torch.tensor(float(value))


def test_a_report_has_the_means_over_its_steps(tmp_path, capsys):
    log = started_log(tmp_path)
    log.add(loss=tensor(1), other=tensor(5))
    assert log.report(1, lr=0.1) is None
    log.add(loss=tensor(4))
    metrics = log.report(2, lr=0.1)
    assert metrics["loss"] == 2.5 and metrics["other"] == 5 and metrics["lr"] == 0.1
    assert metrics["images_per_second"] > 0
    (line,) = read_metrics(tmp_path / "metrics.jsonl")
    assert line["step"] == 2 and line["loss"] == 2.5 and line["seconds"] >= 0
    assert "step 2/100  loss 2.5" in capsys.readouterr().out
    log.add(loss=tensor(7))
    log.report(3)
    assert log.report(4)["loss"] == 7  # the sums were reset


def test_progress_and_validation_lines_read_as_one_line_each(tmp_path, capsys):
    log = started_log(tmp_path)
    log.add(loss=tensor(0.41234), grad_norm=tensor(0.81), grad_unet=tensor(0.8))
    log.report(2, lr=1e-4)
    log.validation(2, {"val_loss": 0.0412, "text_gap": 0.012})
    progress, validation = capsys.readouterr().out.splitlines()
    metrics = r"loss 0\.4123  lr 1\.0e-04  grad_norm 0\.81  grad_unet 0\.8"
    assert re.fullmatch(rf"step 2/100  {metrics}  [\d.]+ images/s  eta \d+:\d\d:\d\d", progress)
    assert validation == "step 2  val_loss 0.0412  text_gap 0.012"


def test_the_last_step_is_always_reported(tmp_path):
    log = started_log(tmp_path, log_every=50, steps=3)
    log.add(loss=tensor(1))
    assert log.report(3) is not None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_values_are_excluded_from_the_mean(tmp_path, value):
    log = started_log(tmp_path)
    for x in (value, 3):
        log.add(grad_norm=tensor(x), skipped_steps=tensor(not math.isfinite(x)))
    metrics = log.report(2)
    assert metrics["grad_norm"] == 3 and metrics["skipped_steps"] == 0.5


def test_a_metric_without_finite_values_is_null_in_the_file(tmp_path):
    log = started_log(tmp_path)
    log.add(loss=tensor(math.nan))
    assert math.isnan(log.report(2)["loss"])
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["loss"] is None
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_the_run_stops_when_every_step_is_skipped(tmp_path):
    log = started_log(tmp_path, log_every=20)
    for _ in range(20):
        log.add(skipped_steps=tensor(1))
    with pytest.raises(UserError, match="the last 20 steps were skipped.*not finite.*train.lr"):
        log.report(20)


def test_nothing_is_written_before_the_start(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 9, "seconds": 2.0}\n')
    log = Log(tmp_path, SINGLE_PROCESS, 4, TrainConfig())
    log.info("a line")
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1
    log.start()
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_a_resumed_run_drops_later_lines_and_continues_its_seconds(tmp_path):
    lines = [{"step": step, "seconds": step * 10.0, "loss": 1.0} for step in (2, 4, 6)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 8, "sec')  # killed while writing
    log = started_log(tmp_path, start_step=4)
    assert read_metrics(tmp_path / "metrics.jsonl") == lines[:2]
    assert 40 <= log.seconds < 45
    log.write(6, loss=2)
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["seconds"] >= 40


def test_excluded_time_does_not_lower_the_throughput(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("latentdiff.training.log.time.monotonic", lambda: now[0])
    log = started_log(tmp_path)
    now[0] += 10  # two steps
    with log.exclude_from_throughput():
        now[0] += 90
    assert log.report(2)["images_per_second"] == pytest.approx(2 * 4 / 10)
    assert log.seconds == 100  # all time counts here


def test_only_rank_0_writes_and_prints(tmp_path, capsys):
    log = Log(tmp_path, World(1, 1, torch.device("cpu")), 0, TrainConfig(log_every=1))
    log.start()
    log.add(loss=tensor(1))
    log.report(1)
    log.info("hello")
    assert not (tmp_path / "metrics.jsonl").exists() and capsys.readouterr().out == ""


def test_damaged_lines_are_ignored(tmp_path):
    (tmp_path / "m").write_text('{"step": 1}\n[3]\n{"loss": 2}\nnonsense\n{"step": 2}\n')
    assert read_metrics(tmp_path / "m") == [{"step": 1}, {"step": 2}]
    assert read_metrics(tmp_path / "nowhere") == []


def test_durations_are_formatted_as_hours_minutes_seconds():
    assert [clock(s) for s in (0, 59.9, 61, 4000, math.inf)] == [
        "0:00:00",
        "0:00:59",
        "0:01:01",
        "1:06:40",
        "1000:00:00",
    ]


def test_skipped_steps_are_counted_over_restarts(tmp_path):
    for start_step in (0, 4):
        log = started_log(tmp_path, start_step)
        for step in range(start_step + 1, start_step + 5):
            log.add(skipped_steps=tensor(step in (1, 3, 4, 8)))
            log.report(step)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    counts = [(line["step"], line["skipped_steps"], line["total_skipped_steps"]) for line in lines]
    assert counts == [(2, 0.5, 1), (4, 1, 3), (6, 0, 3), (8, 0.5, 4)]


def test_wandb_gets_every_report_and_is_finished(tmp_path, monkeypatch):
    received, settings = [], {}
    run = SimpleNamespace(
        log=lambda metrics, step: received.append((step, metrics)), finish=lambda: received.append("finished")
    )
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **options: settings.update(options) or run))
    log = Log(tmp_path / "mine", SINGLE_PROCESS, 0, TrainConfig(log_every=1), "wandb")
    assert not settings  # a run that raises UserError does not reach wandb
    (tmp_path / "mine").mkdir()
    log.start()
    log.add(loss=tensor(2), grad_norm=tensor(math.nan))
    log.report(1, lr=0.1)
    log.close()
    (step, metrics), end = received
    assert step == 1 and metrics["loss"] == 2 and metrics["lr"] == 0.1 and "grad_norm" not in metrics
    assert end == "finished" and settings["name"] == settings["id"] == "mine" and settings["resume"] == "allow"


def test_tensorboard_writes_every_report(tmp_path):
    pytest.importorskip("tensorboard")
    log = Log(tmp_path, SINGLE_PROCESS, 0, TrainConfig(log_every=1), "tensorboard")
    log.start()
    log.add(loss=tensor(2))
    log.report(1)
    log.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"train/loss" in events.read_bytes()
