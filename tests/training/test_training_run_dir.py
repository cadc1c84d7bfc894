import os
import signal
from dataclasses import dataclass, replace

import pytest
import torch

from latentdiff.config import UserError
from latentdiff.training import checkpoint, run_dir
from latentdiff.training.distributed import World
from latentdiff.training.log import Log
from latentdiff.training.settings import TrainConfig

SINGLE_PROCESS = World(0, 1, torch.device("cpu"))


@dataclass(frozen=True)
class Recipe:
    name: str = "mine"  # of the run
    size: int = 3  # a field
    train: TrainConfig = TrainConfig()  # the loop


@dataclass(frozen=True)
class Other:
    name: str = "mine"  # of the run


def open_and_create(recipe):
    folder, newest = run_dir.open_run(recipe, SINGLE_PROCESS)
    run_dir.create_run_dir(folder, recipe, SINGLE_PROCESS)
    return folder, newest


def test_open_run_writes_nothing_and_create_run_dir_writes_the_recipe(runs):
    folder, newest = run_dir.open_run(Recipe(), SINGLE_PROCESS)
    assert folder == runs / "mine" and newest is None and not runs.exists()
    run_dir.create_run_dir(folder, Recipe(), SINGLE_PROCESS, lambda: (folder / "file").write_text("content"))
    assert run_dir.read_recipe(folder, Recipe) == Recipe() and (folder / "file").exists()


def test_an_existing_run_resumes_from_its_newest_checkpoint(runs):
    folder, _ = open_and_create(Recipe())
    for step in (5, 10):
        checkpoint.save(folder / "checkpoints", step, {"model": {"w": torch.ones(1)}}, {}, keep=3)
    assert open_and_create(Recipe())[1].name == "step_00000010"


@pytest.mark.parametrize("other", [0, 7])
def test_ranks_that_see_different_checkpoints_do_not_start(other, runs, monkeypatch):
    """On a network file system a machine may see an old state of a folder."""
    checkpoint.save(runs / "mine" / "checkpoints", 5, {}, {}, 1)
    monkeypatch.setattr(World, "all_reduce_max", lambda world, value: max(value, other if value >= 0 else -other))
    with pytest.raises(UserError, match="different checkpoints"):
        run_dir.open_run(Recipe(), World(1, 2, torch.device("cpu")))


def test_a_resumed_run_records_changed_fields():
    open_and_create(Recipe())
    later = replace(Recipe(), train=TrainConfig(steps=7, num_workers=2, log_every=3, keep_checkpoints=9))
    folder, _ = open_and_create(later)
    assert run_dir.read_recipe(folder, Recipe) == later


@pytest.mark.parametrize("change, texts", [
    ({"size": 4}, ["size=3", "not 4"]),
    ({"train": TrainConfig(lr=1)}, ["train.lr=0.0001", "not 1"]),
    ({"train": TrainConfig(batch_size=8, steps=5)}, ["train.batch_size=64", "not 8"]),
    ({"train": TrainConfig(seed=1)}, ["train.seed=0", "not 1"]),
])  # fmt: skip
def test_other_changes_raise_an_error_with_old_and_new_value(change, texts):
    folder, _ = open_and_create(Recipe())
    with pytest.raises(UserError) as info:
        run_dir.open_run(replace(Recipe(), **change), SINGLE_PROCESS)
    assert all(text in str(info.value) for text in [*texts, str(folder), "name="])
    assert run_dir.read_recipe(folder, Recipe) == Recipe()


def test_a_recipe_of_another_type_or_a_damaged_one_raises_an_error():
    folder, _ = open_and_create(Recipe())
    with pytest.raises(UserError, match="is Recipe; it must be Other"):
        run_dir.open_run(Other(), SINGLE_PROCESS)
    for text in ("{", "[]", ""):
        (folder / "recipe.json").write_text(text)
        with pytest.raises(UserError, match=str(folder)):
            run_dir.read_recipe(folder, Recipe)


def test_find_run_accepts_a_folder_or_a_name(runs):
    folder, _ = open_and_create(Recipe())
    assert run_dir.find_run("mine") == run_dir.find_run(folder) == run_dir.find_run(str(folder)) == folder
    with pytest.raises(UserError, match="no run at other.*runs there: mine"):
        run_dir.find_run("other")


def test_a_folder_that_cannot_be_created_is_a_user_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LATENTDIFF_RUNS", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot write"):
        open_and_create(Recipe())


SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_requests_a_stop_and_gives_the_exit_code(signum, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_info, run_dir.StopSignal() as stop:
        assert stop.requested(SINGLE_PROCESS) == 0
        os.kill(os.getpid(), signum)
        assert stop.requested(SINGLE_PROCESS) == signum
        stop.exit(Log(tmp_path, SINGLE_PROCESS, 0, TrainConfig()), 7, stop.requested(SINGLE_PROCESS))
    assert exit_info.value.code == 128 + signum
    assert f"stopped by {signum.name} after step 7; run the same command again" in capsys.readouterr().out


def test_no_rank_exits_before_rank_0_has_saved(tmp_path, monkeypatch):
    barriers = []
    monkeypatch.setattr(World, "barrier", lambda world: barriers.append(world.rank))
    with pytest.raises(SystemExit):
        run_dir.StopSignal().exit(Log(tmp_path, World(1, 2, torch.device("cpu")), 0, TrainConfig()), 7, signal.SIGTERM)
    assert barriers == [1]


def test_a_second_ctrl_c_interrupts_at_once():
    with pytest.raises(KeyboardInterrupt), run_dir.StopSignal():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_during_the_last_step_is_raised_after_the_loop():
    received = []
    signal.signal(signal.SIGTERM, lambda signum, frame: received.append(signum))
    with run_dir.StopSignal():
        os.kill(os.getpid(), signal.SIGTERM)
        assert not received
    assert received == [signal.SIGTERM]
    os.kill(os.getpid(), signal.SIGTERM)  # the old handler is restored
    assert received == [signal.SIGTERM] * 2


def test_finish_run_writes_the_weights_and_the_curves(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\n{"step": 2, "loss": 1}\n')
    log = Log(tmp_path, SINGLE_PROCESS, 0, TrainConfig())
    run_dir.finish_run(log, {"w": torch.ones(2)}, {"latentdiff.step": "2"}, ("loss",))
    assert checkpoint.read_tensors(tmp_path / "model.safetensors")["w"].tolist() == [1, 1]
    assert checkpoint.read_metadata(tmp_path / "model.safetensors")["latentdiff.step"] == "2"
    assert (tmp_path / "curve.png").exists()
