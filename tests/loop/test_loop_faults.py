"""Ranks that fail, signals at any time, disks that are full, data that vanishes: a plain end, and nothing is lost."""

import os
import shutil
import signal
import subprocess
import sys

import pytest
from conftest import ROOT, STAGE_ONE, STAGE_TWO, TWENTY, call, rows, tensors_of
from test_loop_ranks import WORDS, torchrun

from latentdiff.training import checkpoint, log

TWELVE = (*WORDS, "train.steps=12", "train.checkpoint_every=4", "name=run")

# ---- ranks

END = {
    "raise": "ValueError: unwell",
    "kill": "exited without an error (killed?)",
    "hang": "no answer in time (train.timeout)",
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["raise", "hang"])
def test_a_rank_that_fails_is_named_with_its_reason(fault, runs):
    result = torchrun(*STAGE_TWO, *TWELVE, "train.timeout=0.1", check=False, FAULT=fault)
    assert result.returncode != 0
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and lines[0].startswith("error: rank 1 (") and END[fault] in lines[0]
    assert [p.name for p in checkpoint.list_checkpoints(runs / "run" / "checkpoints")] == ["step_00000004"]


@pytest.mark.slow
def test_torchrun_goes_on_from_the_last_checkpoint_after_a_rank_was_killed(runs):
    result = torchrun(*STAGE_TWO, *TWELVE, restarts=1, FAULT="kill")
    assert END["kill"] in result.stderr and "resumed at step 4" in result.stdout
    assert rows(runs / "run")[-1]["step"] == 12 and (runs / "run" / "model.safetensors").exists()


# ---- signals


SLOW = """
import os, signal, sys
from conftest import script
from latentdiff import cli
from latentdiff.data import encode
stage = script(sys.argv[1].removesuffix(".py"))
def told(function):
    def during(*args, **kwargs):
        print("now", flush=True)
        os.kill(os.getpid(), int(number))
        return function(*args, **kwargs)
    return during
number, sys.argv = sys.argv[2], [sys.argv[1], *sys.argv[3:]]
if "autoencoder" in sys.argv[0]:
    stage.statistics = told(stage.statistics)
else:
    encode._encode_rows = told(encode._encode_rows)
cli.run(stage.main)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage, number", [(STAGE_ONE, signal.SIGTERM), (STAGE_TWO, signal.SIGUSR1)], ids=["one", "two"]
)
def test_a_signal_during_statistics_or_caching_ends_at_once_and_the_next_start_goes_on(stage, number, runs):
    words = (*TWENTY, "train.steps=2", "name=run")
    result = subprocess.run(
        [sys.executable, "-c", SLOW, f"{stage[0]}.py", str(int(number)), stage[1], *words],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])},
        cwd=ROOT, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert result.returncode == 128 + number and result.stderr == f"stopped by {number.name}\n"
    assert result.stdout.count("now") == 1 and not (runs / "run" / "model.safetensors").exists()
    call(*stage, *words)
    assert (runs / "run" / "model.safetensors").exists()


# ---- disks


@pytest.fixture
def small_disk(tmp_path):
    """small_disk(kilobytes) -> a file system of that size."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mounted(kilobytes: int):
        options = ["-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(disk)]
        if shutil.which("mount") is None or subprocess.run(["mount", *options], capture_output=True).returncode:
            pytest.skip("mounting needs root")
        return disk

    yield mounted
    subprocess.run(["umount", "--lazy", str(disk)], capture_output=True)


@pytest.mark.parametrize("stage", [STAGE_ONE, STAGE_TWO], ids=["one", "two"])
def test_a_disk_that_is_full_in_mid_checkpoint_leaves_the_last_one(stage, small_disk, monkeypatch, refused, tmp_path):
    words = (*stage, "data.count=16", "data.val_count=4", "train.steps=9", "train.checkpoint_every=3", "train.keep_checkpoints=9",
             "train.precision=fp32", "train.val_every=99", "train.sample_every=99", "name=run")  # fmt: skip
    monkeypatch.setenv("LATENTDIFF_RUNS", str(tmp_path / "whole"))
    call(*words)
    size = sum(p.stat().st_size for p in (tmp_path / "whole").rglob("step_00000003/*")) // 1024
    rest = sum(p.stat().st_size for p in (tmp_path / "whole").rglob("*") if p.is_file()) // 1024 - 3 * size
    disk = small_disk(int(1.6 * size) + rest)
    monkeypatch.setenv("LATENTDIFF_RUNS", str(disk))
    error = refused(*words)
    assert "cannot write the checkpoint" in error and "No space left" in error and "the last checkpoint is intact" in error
    saved = disk / "run" / "checkpoints"
    assert os.listdir(saved) == ["step_00000003"]
    shutil.copytree(disk / "run", tmp_path / "more" / "run")  # a larger disk
    monkeypatch.setenv("LATENTDIFF_RUNS", str(tmp_path / "more"))
    call(*words)
    now, whole = (tensors_of(tmp_path / name / "run" / "checkpoints" / "step_00000009") for name in ("more", "whole"))
    assert now.keys() == whole.keys() and all((now[name] == whole[name]).all() for name in now)


def test_a_disk_that_is_full_in_mid_cache_keeps_its_whole_shards(small_disk, refused, tmp_path, runs):
    words = (*STAGE_TWO, "train.steps=1", "cache.shard_size=16", "name=run")
    call(*words, f"cache.path={tmp_path / 'whole'}")
    shard = (tmp_path / "whole" / "shard_00000.safetensors").stat().st_size // 1024
    disk = small_disk(int(2.5 * shard) + 8)
    shutil.rmtree(runs)
    error = refused(*words, f"cache.path={disk / 'cache'}")
    assert "cannot write the latent cache" in error and "No space left" in error
    assert sorted(os.listdir(disk / "cache")) == ["manifest.json", "shard_00000.safetensors", "shard_00001.safetensors"]
    assert not runs.exists()
    shutil.copytree(disk / "cache", tmp_path / "more")
    call(*words, f"cache.path={tmp_path / 'more'}")
    for path in (tmp_path / "whole").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "more" / path.name).read_bytes()


class Full:
    """A file on a full disk."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def write(self, text: str) -> None:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("stage", [STAGE_ONE, STAGE_TWO], ids=["one", "two"])
def test_a_full_disk_met_by_a_line_of_metrics_or_a_picture_is_one_line(stage, runs, refused, monkeypatch):
    words = (*stage, *TWENTY, "train.steps=4", "train.sample_every=2")
    with monkeypatch.context() as patch:
        patch.setattr(log, "open", lambda *_: Full(), raising=False)
        error = refused(*words, "name=a")
        assert "metrics.jsonl" in error and "No space left" in error
    monkeypatch.setattr("PIL.Image.Image.save", lambda *_, **__: Full().write(""))
    assert "No space left" in refused(*words, "name=b")


def test_a_read_only_folder_is_refused(runs, refused, monkeypatch):
    def read_only(path, *_, **__):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr("pathlib.Path.mkdir", read_only)
    for stage in (STAGE_ONE, STAGE_TWO):
        assert "Read-only file system" in refused(*stage, "train.steps=1", "name=run")
    assert not runs.exists()


# ---- data


@pytest.mark.parametrize("stage", [STAGE_ONE, STAGE_TWO], ids=["one", "two"])
def test_data_that_vanishes_during_the_run_ends_it_plainly(stage, tmp_path, runs, refused, monkeypatch):
    import numpy as np
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(24):
        Image.fromarray(np.full((40, 40, 3), 10 * i, np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("a wall")
    words = (*stage, "data=Folder", f"data.path={folder}", "data.size=32", "train.steps=12", "train.checkpoint_every=4",
             "train.val_every=99", "train.sample_every=99", "train.precision=fp32", "name=run")  # fmt: skip
    words = (*words, "cache.enabled=false") if stage is STAGE_TWO else words
    report = log.Log.report

    def vanish(own, step, **values):
        if step == 6 and folder.exists():
            folder.rename(tmp_path / "gone")
        return report(own, step, **values)

    monkeypatch.setattr(log.Log, "report", vanish)
    error = refused(*words)
    assert "cannot be" in error and ".png" in error
    assert [p.name for p in checkpoint.list_checkpoints(runs / "run" / "checkpoints")] == ["step_00000004"]
    (tmp_path / "gone").rename(folder)
    monkeypatch.undo()
    monkeypatch.setenv("LATENTDIFF_RUNS", str(runs))
    monkeypatch.chdir(ROOT)
    call(*words)
    assert rows(runs / "run")[-1]["step"] == 12
