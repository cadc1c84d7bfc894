"""How soon each script is there: imports, --help, the first step."""

import os
import resource
import subprocess
import sys
import tempfile
import time

from benchmarks.speed.race import ROOT, Spread, clock
from benchmarks.speed.work import Bar, Row, Work, row, times
from latentdiff.config import UserError

STEP = "train.steps=1 train.log_every=1 train.val_every=1 train.sample_every=1 train.checkpoint_every=1 name=bench"
COMMANDS = {  # what python is told; all are counted in the first
    "import torch": ("-c", "import torch"),
    "import latentdiff": ("-c", "import latentdiff"),
    "import what load_run needs": ("-c", "import latentdiff.load"),
    "train_autoencoder.py --help": ("train_autoencoder.py", "--help"),
    "train_diffusion.py --help": ("train_diffusion.py", "--help"),
    "train_classifier.py --help": ("train_classifier.py", "--help"),
    "sample.py --help": ("sample.py", "--help"),
    "evaluate.py --help": ("evaluate.py", "--help"),
    "tiny autoencoder, one step and all that a run leaves": (
        "train_autoencoder.py", "recipes/autoencoder/tiny.py", *STEP.split()),
    "tiny diffusion, one step and all that a run leaves": (
        "train_diffusion.py", "recipes/diffusion/tiny.py", *STEP.split()),
}  # fmt: skip


def took(command: tuple[str, ...]) -> float:
    """Seconds of a process, or of the processor in it; every run begins from nothing."""
    with tempfile.TemporaryDirectory() as folder:
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
        environment = dict(os.environ) | {"LATENTDIFF_RUNS": folder, "PYTHONPATH": paths}
        done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
        after, ended = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    if done.returncode:
        raise UserError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    worked = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return worked if clock() == "processor" else ended - began


def starting(share: float) -> list[Row]:
    found: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(times(3, share)):
        for name, command in COMMANDS.items():
            found[name].append(took(command))
    first, *others = COMMANDS
    return [row(f"{name}, against {first}", Spread.of([a / b for a, b in zip(found[name], found[first])]))
            for name in others]  # fmt: skip


WORKS = [
    Work("start", "processes from their start to their end", starting,
         {"import latentdiff, against import torch": Bar(1.5, 1.5, "<=")}),
]  # fmt: skip
