"""What the tests of the loops share: the scripts as functions, and tiny runs that are made once."""

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


def call(name: str, *words: str) -> None:
    """What `python name.py words` does, in this process."""
    script(name).main([str(word) for word in words])


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, or of any folder of safetensors files: "file.name" -> tensor."""
    files = {path.stem: checkpoint.read_tensors(path) for path in sorted(folder.glob("*.safetensors"))}
    return {f"{file}.{name}": tensor for file, tensors in files.items() for name, tensor in tensors.items()}


def assert_same_tensors(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    """Equal by name, type, shape and every bit."""
    assert sorted(a) == sorted(b) and a
    different = [name for name in a if a[name].dtype != b[name].dtype or not torch.equal(a[name], b[name])]
    assert not different


def rows(folder: Path) -> list[dict]:
    """metrics.jsonl without what a clock says."""
    clocks = ("seconds", "images_per_second")
    return [{k: v for k, v in row.items() if k not in clocks} for row in read_metrics(folder / "metrics.jsonl")]


def column(folder: Path, name: str) -> list[float]:
    return [row[name] for row in rows(folder) if name in row]


@pytest.fixture(autouse=True)
def at_home(tmp_path, monkeypatch):
    """Runs go to tmp_path, recipes are found, and what a script sets for its process is set back."""
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
    """Where this test's runs go."""
    return tmp_path / "runs"


@pytest.fixture
def refused(capsys, monkeypatch):
    """refused("sample", words...) -> its one line of error; anything else than that and exit code 2 fails."""

    def refused(name: str, *words: str) -> str:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            cli.run(script(name).main)
        error = capsys.readouterr().err
        assert leaving.value.code == 2
        assert error.startswith("error: ") and error.count("\n") == 1
        return error

    return refused


def _made(tmp_path_factory, name: str, *words: str) -> Path:
    root = tmp_path_factory.mktemp("shared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENTDIFF_RUNS", str(root))
        patch.chdir(ROOT)
        call(name, *words, "name=run")
    return root / "run"


@pytest.fixture(scope="session")
def unbroken_one(tmp_path_factory) -> Path:
    """20 steps of stage one in one go. Read only."""
    return _made(tmp_path_factory, *STAGE_ONE, *TWENTY)


@pytest.fixture(scope="session")
def unbroken_two(tmp_path_factory) -> Path:
    """20 steps of stage two in one go. Read only."""
    return _made(tmp_path_factory, *STAGE_TWO, *TWENTY)


@pytest.fixture(scope="session")
def reader(tmp_path_factory) -> Path:
    """A run of stage two that knows four captions by heart. Read only."""
    folder = _made(tmp_path_factory, *STAGE_TWO, *OVERFIT)
    return folder.with_name("run-overfit4")


@pytest.fixture
def copy_of(runs):
    """copy_of(run, name): a run's folder, to be changed, under this test's root."""

    def copy_of(run: Path, name: str = "run") -> Path:
        return Path(shutil.copytree(run, runs / name))

    return copy_of


def written(folder: Path) -> list[str]:
    """Every file and folder below, or nothing where there is no such folder."""
    return sorted(os.path.relpath(p, folder) for p in folder.rglob("*")) if folder.exists() else []
