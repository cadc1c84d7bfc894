"""Shared by the tests of the training loops: the scripts as functions, and tiny runs that are trained once."""

import importlib.util
import os
import shutil
import signal
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from latentdiff import cli
from latentdiff.training import checkpoint
from latentdiff.training.log import read_metrics

ROOT = Path(__file__).resolve().parent.parent
STAGE_ONE = ("train_autoencoder", "recipes/autoencoder/tiny.py")
STAGE_TWO = ("train_diffusion", "recipes/diffusion/tiny.py")
TWENTY = ("train.steps=20", "train.checkpoint_every=10", "train.val_every=10", "train.sample_every=20")
OVERFIT = ("--overfit=4", "train.steps=200", "train.batch_size=16", "train.lr=3e-3", "train.log_every=20",
           "train.val_every=200", "train.sample_every=200", "train.checkpoint_every=200", "train.precision=fp32",
           "autoencoder.latent_stats=data")  # fmt: skip


@cache
def script(name: str):
    """train_autoencoder, train_diffusion, sample or evaluate as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(name: str, *argv: str) -> None:
    """Run `python name.py argv` in this process."""
    script(name).main([str(argument) for argument in argv])


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, or of another folder of safetensors files: "file.name" -> tensor."""
    files = {path.stem: checkpoint.read_tensors(path) for path in sorted(folder.glob("*.safetensors"))}
    return {f"{file}.{name}": tensor for file, tensors in files.items() for name, tensor in tensors.items()}


def assert_same_tensors(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    """Assert equal names, types, shapes and bits."""
    assert sorted(a) == sorted(b) and a
    different = [name for name in a if a[name].dtype != b[name].dtype or not torch.equal(a[name], b[name])]
    assert not different


def metrics_of(folder: Path) -> list[dict]:
    """The rows of metrics.jsonl without measured times."""
    times = ("seconds", "images_per_second")
    return [{k: v for k, v in row.items() if k not in times} for row in read_metrics(folder / "metrics.jsonl")]


def column(folder: Path, name: str) -> list[float]:
    """The values of one metric of a run."""
    return [row[name] for row in metrics_of(folder) if name in row]


@pytest.fixture(autouse=True)
def isolated_environment(tmp_path, monkeypatch):
    """Put runs into tmp_path, make recipe paths valid, and restore the process settings that scripts change."""
    monkeypatch.setenv("LATENTDIFF_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(ROOT)
    names = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    handlers, matmul = [signal.getsignal(name) for name in names], torch.get_float32_matmul_precision()
    yield
    for name, handler in zip(names, handlers):
        signal.signal(name, handler)
    torch.set_float32_matmul_precision(matmul)
    torch.set_flush_denormal(False)


@pytest.fixture
def runs(tmp_path) -> Path:
    """Folder of the runs of a test."""
    return tmp_path / "runs"


@pytest.fixture
def refused(capsys, monkeypatch):
    """refused("sample", argv...) -> its error message, which must be one line with exit code 2."""

    def refused(name: str, *argv: str) -> str:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, argv)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            cli.run(script(name).main)
        error = capsys.readouterr().err
        assert exit_info.value.code == 2
        assert error.startswith("error: ") and error.count("\n") == 1
        return error

    return refused


def _train(tmp_path_factory, name: str, *argv: str) -> Path:
    root = tmp_path_factory.mktemp("shared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENTDIFF_RUNS", str(root))
        patch.chdir(ROOT)
        call(name, *argv, "name=run")
    return root / "run"


@pytest.fixture(scope="session")
def stage_one_run(tmp_path_factory) -> Path:
    """20 uninterrupted steps of stage one. Read only."""
    return _train(tmp_path_factory, *STAGE_ONE, *TWENTY)


@pytest.fixture(scope="session")
def stage_two_run(tmp_path_factory) -> Path:
    """20 uninterrupted steps of stage two. Read only."""
    return _train(tmp_path_factory, *STAGE_TWO, *TWENTY)


@pytest.fixture(scope="session")
def overfit_run(tmp_path_factory) -> Path:
    """A run of stage two that has overfitted four images with captions. Read only."""
    folder = _train(tmp_path_factory, *STAGE_TWO, *OVERFIT)
    return folder.with_name("run-overfit4")


@pytest.fixture
def copy_run(runs):
    """copy_run(run, name): a writable copy of a run in the folder `runs`."""

    def copy_run(run: Path, name: str = "run") -> Path:
        return Path(shutil.copytree(run, runs / name))

    return copy_run


def files_in(folder: Path) -> list[str]:
    """Every file and folder below, as relative paths; empty if the folder does not exist."""
    return sorted(os.path.relpath(p, folder) for p in folder.rglob("*")) if folder.exists() else []
