"""docs/extend.md, followed to the letter in a copy of the repository."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "extend.md").read_text()
FILE_BLOCK = re.compile(r"^`([\w/.]+)`\n\n```(python|diff)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def apply_changes(text: str, diff: str) -> str:
    """Replace each run of lines that start with - by the lines with + that follow; each must occur exactly once."""
    for old, new in re.findall(r"((?:^-.*\n)+)((?:^\+.*\n)+)", diff, re.MULTILINE):
        old, new = (re.sub(r"^[-+]", "", lines, flags=re.MULTILINE).removesuffix("\n") for lines in (old, new))
        assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times"
        text = text.replace(old, new)
    return text


def run(folder: Path, command: str) -> subprocess.CompletedProcess:
    argv = [sys.executable if word == "python" else word for word in shlex.split(command)]
    env = os.environ | {"PYTHONPATH": str(folder / "src"), "LATENTDIFF_RUNS": str(folder / "runs")}
    return subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """A copy with the files and changes of the page, and images to train on."""
    folder = tmp_path_factory.mktemp("repository")
    for name in ("src", "recipes"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for script in ROOT.glob("*.py"):
        shutil.copy(script, folder)
    changes = FILE_BLOCK.findall(PAGE)
    assert sorted({kind for _, kind, _ in changes}) == ["diff", "python"]
    for name, kind, code in changes:
        path = folder / name
        assert path.exists() == (kind == "diff"), name
        path.write_text(code if kind == "python" else apply_changes(path.read_text(), code))
    levels = np.linspace(0, 255, 40).astype(np.uint8)
    images = np.broadcast_to(levels[:, None, None, None], (40, 32, 32, 3))
    np.savez(folder / "images.npz", images=images, captions=[f"gray level {level}" for level in levels])
    return folder


def test_the_page_adds_two_files_and_one_recipe():
    new_files = [name for name, kind, _ in FILE_BLOCK.findall(PAGE) if kind == "python"]
    assert [name.split("/")[-1] for name in new_files] == ["brightness.py", "npz.py", "brightness.py"]
    changed = {name for name, kind, _ in FILE_BLOCK.findall(PAGE) if kind == "diff"}
    assert changed == {"src/latentdiff/recipe.py", "src/latentdiff/diffusion/samplers.py"}


def test_its_commands_train_and_sample_with_the_new_condition_format_and_sampler(repository):
    (commands,) = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    outputs = []
    for command in commands.splitlines():
        process = run(repository, command)
        assert process.returncode == 0, process.stdout + process.stderr
        outputs.append(process.stdout)
    assert "--brightness" in outputs[1] and "from 0 (black) to 1 (white)" in outputs[1]
    recipe = json.loads((repository / "runs" / "brightness" / "recipe.json").read_text())
    assert "Brightness" in json.dumps(recipe) and "Npz" in json.dumps(recipe)
    images = sorted(p for p in (repository / "samples").rglob("*.png") if p.name != "grid.png")
    assert len(images) == 8
    metadata = [Image.open(path).info for path in images]
    assert all("early_noise" in str(info) and "brightness" in str(info) for info in metadata)


def test_an_impossible_brightness_is_refused_by_name(repository):
    process = run(repository, "python sample.py --run brightness --brightness 2")
    assert process.returncode == 2 and "--brightness 2: it must be a number from 0" in process.stderr


def test_the_early_noise_sampler_keeps_the_variance_of_a_gaussian(repository):
    """For data N(0, 1) the exact denoiser is x0 = alpha·x, eps = sigma·x: the samples must have variance 1."""
    code = """
import torch
from latentdiff.diffusion import samplers
from latentdiff.diffusion.schedule import Schedule, ScheduleConfig
schedule, generator = Schedule(ScheduleConfig()), torch.Generator().manual_seed(0)
noise = lambda: torch.randn(4096, 1, 4, 4, generator=generator, dtype=torch.float64)
def denoise(x, t):
    t = torch.tensor([t], dtype=torch.float64)
    return schedule.alpha(t) * x, schedule.sigma(t) * x
ts = torch.linspace(999, 1, 100)
*_, x0 = samplers.sample("early_noise", denoise, noise(), ts, schedule, noise=noise)
print(x0.var().item())
"""
    process = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(repository / "src")},
                             capture_output=True, text=True, timeout=120)  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert float(process.stdout) == pytest.approx(1, abs=0.05)
