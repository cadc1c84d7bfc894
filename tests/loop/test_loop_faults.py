"""Failing ranks, signals at any time, full disks and deleted data end a run with a clear message; nothing is lost."""

import os
import shutil
import signal
import subprocess
import sys

import pytest
from conftest import ROOT, STAGE_ONE, STAGE_TWO, TWENTY, call, metrics_of, tensors_of
from test_loop_ranks import ARGS, torchrun

from latentdiff.training import checkpoint, log

TWELVE = (*ARGS, "train.steps=12", "train.checkpoint_every=4", "name=run")

# ---- ranks

MESSAGES = {
    "raise": "ValueError: failure of rank 1",
    "kill": "exited without an error (killed?)",
    "hang": "no answer in time (train.timeout)",
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["raise", "hang"])
def test_a_rank_that_fails_is_named_with_its_reason(fault, runs):
    result = torchrun(*STAGE_TWO, *TWELVE, "train.timeout=0.1", check=False, FAULT=fault)
    assert result.returncode != 0
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and lines[0].startswith("error: rank 1 (") and MESSAGES[fault] in lines[0]
    assert [p.name for p in checkpoint.list_checkpoints(runs / "run" / "checkpoints")] == ["step_00000004"]


@pytest.mark.slow
def test_torchrun_resumes_from_the_last_checkpoint_after_a_rank_was_killed(runs):
    result = torchrun(*STAGE_TWO, *TWELVE, restarts=1, FAULT="kill")
    assert MESSAGES["kill"] in result.stderr and "resumed at step 4" in result.stdout
    assert metrics_of(runs / "run")[-1]["step"] == 12 and (runs / "run" / "model.safetensors").exists()


# ---- signals


SLOW = """
import os, signal, sys
from conftest import script
from latentdiff import cli
from latentdiff.data import encode_latents
stage = script(sys.argv[1].removesuffix(".py"))
def with_signal(function):
    def wrapped(*args, **kwargs):
        print("now", flush=True)
        os.kill(os.getpid(), int(number))
        return function(*args, **kwargs)
    return wrapped
number, sys.argv = sys.argv[2], [sys.argv[1], *sys.argv[3:]]
if "autoencoder" in sys.argv[0]:
    stage.latent_stats = with_signal(stage.latent_stats)
else:
    encode_latents._encode_entries = with_signal(encode_latents._encode_entries)
cli.run(stage.main)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage, number", [(STAGE_ONE, signal.SIGTERM), (STAGE_TWO, signal.SIGUSR1)], ids=["one", "two"]
)
def test_a_signal_during_statistics_or_caching_stops_at_once_and_the_next_start_continues(stage, number, runs):
    argv = (*TWENTY, "train.steps=2", "name=run")
    result = subprocess.run(
        [sys.executable, "-c", SLOW, f"{stage[0]}.py", str(int(number)), stage[1], *argv],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])},
        cwd=ROOT, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert result.returncode == 128 + number and result.stderr == f"stopped by {number.name}\n"
    assert result.stdout.count("now") == 1 and not (runs / "run" / "model.safetensors").exists()
    call(*stage, *argv)
    assert (runs / "run" / "model.safetensors").exists()


# ---- disks


@pytest.fixture
def small_disk(tmp_path):
    """small_disk(kilobytes) -> the folder of a file system of that size."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(kilobytes: int):
        options = ["-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(disk)]
        if shutil.which("mount") is None or subprocess.run(["mount", *options], capture_output=True).returncode:
            pytest.skip("mounting needs root")
        return disk

    yield mount
    subprocess.run(["umount", "--lazy", str(disk)], capture_output=True)


@pytest.mark.parametrize("stage", [STAGE_ONE, STAGE_TWO], ids=["one", "two"])
def test_a_full_disk_during_a_checkpoint_keeps_the_last_one(stage, small_disk, monkeypatch, refused, tmp_path):
    argv = (*stage, "data.count=16", "data.val_count=4", "train.steps=9", "train.checkpoint_every=3",
            "train.keep_checkpoints=9", "train.precision=fp32", "train.val_every=99", "train.sample_every=99",
            "name=run")  # fmt: skip
    monkeypatch.setenv("LATENTDIFF_RUNS", str(tmp_path / "whole"))
    call(*argv)
    size = sum(p.stat().st_size for p in (tmp_path / "whole").rglob("step_00000003/*")) // 1024
    other = sum(p.stat().st_size for p in (tmp_path / "whole").rglob("*") if p.is_file()) // 1024 - 3 * size
    disk = small_disk(int(1.6 * size) + other)
    monkeypatch.setenv("LATENTDIFF_RUNS", str(disk))
    error = refused(*argv)
    assert (
        "cannot write the checkpoint" in error and "No space left" in error and "the last checkpoint is intact" in error
    )
    saved = disk / "run" / "checkpoints"
    assert os.listdir(saved) == ["step_00000003"]
    shutil.copytree(disk / "run", tmp_path / "more" / "run")  # a larger disk
    monkeypatch.setenv("LATENTDIFF_RUNS", str(tmp_path / "more"))
    call(*argv)
    resumed, whole = (
        tensors_of(tmp_path / name / "run" / "checkpoints" / "step_00000009") for name in ("more", "whole")
    )
    assert resumed.keys() == whole.keys() and all((resumed[name] == whole[name]).all() for name in resumed)


def test_a_full_disk_during_caching_keeps_the_complete_shards(small_disk, refused, tmp_path, runs):
    argv = (*STAGE_TWO, "train.steps=1", "cache.shard_size=16", "name=run")
    call(*argv, f"cache.path={tmp_path / 'whole'}")
    shard = (tmp_path / "whole" / "shard_00000.safetensors").stat().st_size // 1024
    disk = small_disk(int(2.5 * shard) + 8)
    shutil.rmtree(runs)
    error = refused(*argv, f"cache.path={disk / 'cache'}")
    assert "cannot write the latent cache" in error and "No space left" in error
    assert sorted(os.listdir(disk / "cache")) == ["manifest.json", "shard_00000.safetensors", "shard_00001.safetensors"]
    assert not runs.exists()
    shutil.copytree(disk / "cache", tmp_path / "more")
    call(*argv, f"cache.path={tmp_path / 'more'}")
    for path in (tmp_path / "whole").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "more" / path.name).read_bytes()


class FullDisk:
    """A file on a full disk."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def write(self, text: str) -> None:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("stage", [STAGE_ONE, STAGE_TWO], ids=["one", "two"])
def test_a_full_disk_while_writing_metrics_or_images_is_a_one_line_error(stage, runs, refused, monkeypatch):
    argv = (*stage, *TWENTY, "train.steps=4", "train.sample_every=2")
    with monkeypatch.context() as patch:
        patch.setattr(log, "open", lambda *_: FullDisk(), raising=False)
        error = refused(*argv, "name=a")
        assert "metrics.jsonl" in error and "No space left" in error
    monkeypatch.setattr("PIL.Image.Image.save", lambda *_, **__: FullDisk().write(""))
    assert "No space left" in refused(*argv, "name=b")


def test_a_read_only_folder_is_refused(runs, refused, monkeypatch):
    def read_only(path, *_, **__):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr("pathlib.Path.mkdir", read_only)
    for stage in (STAGE_ONE, STAGE_TWO):
        assert "Read-only file system" in refused(*stage, "train.steps=1", "name=run")
    assert not runs.exists()


# ---- data


@pytest.mark.parametrize("stage", [STAGE_ONE, STAGE_TWO], ids=["one", "two"])
def test_data_that_is_deleted_during_the_run_is_a_one_line_error(stage, tmp_path, runs, refused, monkeypatch):
    import numpy as np
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(24):
        Image.fromarray(np.full((40, 40, 3), 10 * i, np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("a wall")
    argv = (*stage, "data=Folder", f"data.path={folder}", "data.size=32", "train.steps=12", "train.checkpoint_every=4",
             "train.val_every=99", "train.sample_every=99", "train.precision=fp32", "name=run")  # fmt: skip
    argv = (*argv, "cache.enabled=false") if stage is STAGE_TWO else argv
    report = log.Log.report

    def report_and_delete(own, step, **values):
        if step == 6 and folder.exists():
            folder.rename(tmp_path / "gone")
        return report(own, step, **values)

    monkeypatch.setattr(log.Log, "report", report_and_delete)
    error = refused(*argv)
    assert "cannot be" in error and ".png" in error
    assert [p.name for p in checkpoint.list_checkpoints(runs / "run" / "checkpoints")] == ["step_00000004"]
    (tmp_path / "gone").rename(folder)
    monkeypatch.undo()
    monkeypatch.setenv("LATENTDIFF_RUNS", str(runs))
    monkeypatch.chdir(ROOT)
    call(*argv)
    assert metrics_of(runs / "run")[-1]["step"] == 12
