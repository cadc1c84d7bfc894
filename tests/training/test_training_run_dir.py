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
    size: int = 3  # of something
    train: TrainConfig = TrainConfig()  # the loop


@dataclass(frozen=True)
class Other:
    name: str = "mine"  # of the run


def begun(recipe):
    folder, newest = run_dir.open_run(recipe, SINGLE_PROCESS)
    run_dir.begin(folder, recipe, SINGLE_PROCESS)
    return folder, newest


def test_opening_a_run_writes_nothing_and_beginning_it_keeps_the_recipe(runs):
    folder, newest = run_dir.open_run(Recipe(), SINGLE_PROCESS)
    assert folder == runs / "mine" and newest is None and not runs.exists()
    run_dir.begin(folder, Recipe(), SINGLE_PROCESS, lambda: (folder / "part").write_text("kept"))
    assert run_dir.read_recipe(folder, Recipe) == Recipe() and (folder / "part").exists()


def test_a_run_that_exists_goes_on_from_its_newest_checkpoint(runs):
    folder, _ = begun(Recipe())
    for step in (5, 10):
        checkpoint.save(folder / "checkpoints", step, {"model": {"w": torch.ones(1)}}, {}, keep=3)
    assert begun(Recipe())[1].name == "step_00000010"


@pytest.mark.parametrize("theirs", [0, 7])
def test_ranks_that_see_different_checkpoints_do_not_start(theirs, runs, monkeypatch):
    """On a network's file system a machine may see a folder as it was a while ago."""
    checkpoint.save(runs / "mine" / "checkpoints", 5, {}, {}, 1)
    monkeypatch.setattr(World, "agree", lambda world, asked: max(asked, theirs if asked >= 0 else -theirs))
    with pytest.raises(UserError, match="different checkpoints"):
        run_dir.open_run(Recipe(), World(1, 2, torch.device("cpu")))


def test_what_may_change_is_recorded():
    begun(Recipe())
    later = replace(Recipe(), train=TrainConfig(steps=7, num_workers=2, log_every=3, keep_checkpoints=9))
    folder, _ = begun(later)
    assert run_dir.read_recipe(folder, Recipe) == later


@pytest.mark.parametrize("change, words", [
    ({"size": 4}, ["size=3", "not 4"]),
    ({"train": TrainConfig(lr=1)}, ["train.lr=0.0001", "not 1"]),
    ({"train": TrainConfig(batch_size=8, steps=5)}, ["train.batch_size=64", "not 8"]),
    ({"train": TrainConfig(seed=1)}, ["train.seed=0", "not 1"]),
])  # fmt: skip
def test_what_may_not_change_is_refused_with_old_and_new(change, words):
    folder, _ = begun(Recipe())
    with pytest.raises(UserError) as caught:
        run_dir.open_run(replace(Recipe(), **change), SINGLE_PROCESS)
    assert all(word in str(caught.value) for word in [*words, str(folder), "name="])
    assert run_dir.read_recipe(folder, Recipe) == Recipe()


def test_a_run_of_another_kind_or_with_a_damaged_recipe_is_refused():
    folder, _ = begun(Recipe())
    with pytest.raises(UserError, match="is of kind Recipe; this needs Other"):
        run_dir.open_run(Other(), SINGLE_PROCESS)
    for text in ("{", "[]", ""):
        (folder / "recipe.json").write_text(text)
        with pytest.raises(UserError, match=str(folder)):
            run_dir.read_recipe(folder, Recipe)


def test_a_run_is_found_by_folder_or_by_name(runs):
    folder, _ = begun(Recipe())
    assert run_dir.find_run("mine") == run_dir.find_run(folder) == run_dir.find_run(str(folder)) == folder
    with pytest.raises(UserError, match="no run at other.*runs there: mine"):
        run_dir.find_run("other")


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LATENTDIFF_RUNS", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot write"):
        begun(Recipe())


SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_ask_to_stop_and_end_the_process_with_their_number(number, tmp_path, capsys):
    with pytest.raises(SystemExit) as leaving, run_dir.Stop() as stop:
        assert stop.wanted(SINGLE_PROCESS) == 0
        os.kill(os.getpid(), number)
        assert stop.wanted(SINGLE_PROCESS) == number
        stop.leave(Log(tmp_path, SINGLE_PROCESS, 0, TrainConfig()), 7, stop.wanted(SINGLE_PROCESS))
    assert leaving.value.code == 128 + number
    assert f"stopped by {number.name} after step 7; start again" in capsys.readouterr().out


def test_no_rank_leaves_before_the_first_has_saved(tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr(World, "barrier", lambda world: waited.append(world.rank))
    with pytest.raises(SystemExit):
        run_dir.Stop().leave(Log(tmp_path, World(1, 2, torch.device("cpu")), 0, TrainConfig()), 7, signal.SIGTERM)
    assert waited == [1]


def test_a_second_interrupt_leaves_at_once():
    with pytest.raises(KeyboardInterrupt), run_dir.Stop():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_that_comes_with_the_last_step_is_obeyed_after_the_loop():
    got = []
    signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
    with run_dir.Stop():
        os.kill(os.getpid(), signal.SIGTERM)
        assert not got
    assert got == [signal.SIGTERM]
    os.kill(os.getpid(), signal.SIGTERM)  # the handler from before is back
    assert got == [signal.SIGTERM] * 2


def test_a_finished_run_leaves_its_weights_and_curve(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\n{"step": 2, "loss": 1}\n')
    log = Log(tmp_path, SINGLE_PROCESS, 0, TrainConfig())
    run_dir.finish(log, {"w": torch.ones(2)}, {"latentdiff.step": "2"}, ("loss",))
    assert checkpoint.read_tensors(tmp_path / "model.safetensors")["w"].tolist() == [1, 1]
    assert checkpoint.read_metadata(tmp_path / "model.safetensors")["latentdiff.step"] == "2"
    assert (tmp_path / "curve.png").exists()
