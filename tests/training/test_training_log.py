import json
import math
import sys
from types import SimpleNamespace

import pytest
import torch

from latentdiff.config import UserError
from latentdiff.training.distributed import World
from latentdiff.training.log import Log, clock, plan, read_metrics
from latentdiff.training.settings import TrainConfig

SINGLE_PROCESS = World(0, 1, torch.device("cpu"))


def log_at(folder, first=0, **train):
    log = Log(folder, SINGLE_PROCESS, first, TrainConfig(**{"steps": 100, "log_every": 2, "batch_size": 4} | train))
    log.start()
    return log


def tensor(value):
    return torch.tensor(float(value))


def test_a_report_shows_means_over_its_steps(tmp_path, capsys):
    log = log_at(tmp_path)
    log.add(loss=tensor(1), other=tensor(5))
    assert log.report(1, lr=0.1) is None
    log.add(loss=tensor(4))
    values = log.report(2, lr=0.1)
    assert values["loss"] == 2.5 and values["other"] == 5 and values["lr"] == 0.1
    assert values["images_per_second"] > 0
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert row["step"] == 2 and row["loss"] == 2.5 and row["seconds"] >= 0
    assert "step 2/100  loss 2.5" in capsys.readouterr().out
    log.add(loss=tensor(7))
    log.report(3)
    assert log.report(4)["loss"] == 7  # the sums begin anew


def test_the_last_step_is_always_reported(tmp_path):
    log = log_at(tmp_path, log_every=50, steps=3)
    log.add(loss=tensor(1))
    assert log.report(3) is not None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_left_out_of_the_mean(tmp_path, bad):
    log = log_at(tmp_path)
    for value in (bad, 3):
        log.add(grad_norm=tensor(value), skipped=tensor(not math.isfinite(value)))
    values = log.report(2)
    assert values["grad_norm"] == 3 and values["skipped"] == 0.5


def test_a_mean_of_nothing_is_null_in_the_file(tmp_path):
    log = log_at(tmp_path)
    log.add(loss=tensor(math.nan))
    assert math.isnan(log.report(2)["loss"])
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["loss"] is None
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_repeated_trouble_stops_with_plain_words(tmp_path):
    log = log_at(tmp_path, log_every=20)
    for _ in range(20):
        log.add(skipped=tensor(1))
    with pytest.raises(UserError, match="no gradient of the last 20 steps was finite.*train.lr"):
        log.report(20)


def test_nothing_is_written_before_the_start(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 9, "seconds": 2.0}\n')
    log = Log(tmp_path, SINGLE_PROCESS, 4, TrainConfig())
    log.say("a line")
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1
    log.start()
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_a_resumed_run_cuts_back_to_its_checkpoint_and_adds_up_its_seconds(tmp_path):
    rows = [{"step": step, "seconds": step * 10.0, "loss": 1.0} for step in (2, 4, 6)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 8, "sec')  # killed while writing
    log = log_at(tmp_path, first=4)
    assert read_metrics(tmp_path / "metrics.jsonl") == rows[:2]
    assert 40 <= log.seconds < 45
    log.write(6, loss=2)
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["seconds"] >= 40


def test_validation_is_no_training_time(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("latentdiff.training.log.time.monotonic", lambda: now[0])
    log = log_at(tmp_path)
    now[0] += 10  # two steps
    with log.aside():
        now[0] += 90
    assert log.report(2)["images_per_second"] == pytest.approx(2 * 4 / 10)
    assert log.seconds == 100  # the clock of the run goes on


def test_only_the_first_rank_writes_and_speaks(tmp_path, capsys):
    log = Log(tmp_path, World(1, 1, torch.device("cpu")), 0, TrainConfig(log_every=1))
    log.start()
    log.add(loss=tensor(1))
    log.report(1)
    log.say("hello")
    assert not (tmp_path / "metrics.jsonl").exists() and capsys.readouterr().out == ""


def test_damaged_lines_are_left_out(tmp_path):
    (tmp_path / "m").write_text('{"step": 1}\n[3]\n{"loss": 2}\nnonsense\n{"step": 2}\n')
    assert read_metrics(tmp_path / "m") == [{"step": 1}, {"step": 2}]
    assert read_metrics(tmp_path / "nowhere") == []


def test_times_are_told_as_a_clock_tells_them():
    assert [clock(s) for s in (0, 59.9, 61, 4000, math.inf)] == ["0:00", "0:59", "1:01", "1:06:40", "1000:00:00"]


def test_bad_steps_are_counted_over_restarts(tmp_path):
    for first in (0, 4):
        log = log_at(tmp_path, first)
        for step in range(first + 1, first + 5):
            log.add(skipped=tensor(step in (1, 3, 4, 8)))
            log.report(step)
    rows = [(row["step"], row["skipped"], row["bad_steps"]) for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert rows == [(2, 0.5, 1), (4, 1, 3), (6, 0, 3), (8, 0.5, 4)]


def test_wandb_gets_every_row_and_is_finished(tmp_path, monkeypatch):
    got, asked = [], {}
    run = SimpleNamespace(log=lambda values, step: got.append((step, values)), finish=lambda: got.append("finished"))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **options: asked.update(options) or run))
    log = Log(tmp_path / "mine", SINGLE_PROCESS, 0, TrainConfig(log_every=1), "wandb")
    assert not asked  # a run that is refused leaves no trace there either
    (tmp_path / "mine").mkdir()
    log.start()
    log.add(loss=tensor(2), grad_norm=tensor(math.nan))
    log.report(1, lr=0.1)
    log.close()
    (step, values), end = got
    assert step == 1 and values["loss"] == 2 and values["lr"] == 0.1 and "grad_norm" not in values
    assert end == "finished" and asked["name"] == asked["id"] == "mine" and asked["resume"] == "allow"


def test_tensorboard_gets_every_row_on_disk(tmp_path):
    pytest.importorskip("tensorboard")
    log = Log(tmp_path, SINGLE_PROCESS, 0, TrainConfig(log_every=1), "tensorboard")
    log.start()
    log.add(loss=tensor(2))
    log.report(1)
    log.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"train/loss" in events.read_bytes()


def test_the_opening_screen_has_a_line_per_fact():
    assert plan({"data": "64", "steps": "10"}).splitlines() == ["  data        64", "  steps       10"]
