"""Start-up time of each script: imports, --help, a run of one step."""

import os
import resource
import subprocess
import sys
import tempfile
import time

from benchmarks.speed.benchmark import Benchmark, Measurement, Target, scaled, spread
from benchmarks.speed.interleave import ROOT, Spread, time_key
from latentdiff.config import UserError

STEP = "train.steps=1 train.log_every=1 train.val_every=1 train.sample_every=1 train.checkpoint_every=1 name=bench"
COMMANDS = {  # arguments of python; the first is the baseline of the others
    "import torch": ("-c", "import torch"),
    "import latentdiff": ("-c", "import latentdiff"),
    "imports of load_run": ("-c", "import latentdiff.sampling.pipeline"),
    "train_autoencoder.py --help": ("train_autoencoder.py", "--help"),
    "train_diffusion.py --help": ("train_diffusion.py", "--help"),
    "train_classifier.py --help": ("train_classifier.py", "--help"),
    "sample.py --help": ("sample.py", "--help"),
    "evaluate.py --help": ("evaluate.py", "--help"),
    "tiny autoencoder, a run of one step": ("train_autoencoder.py", "recipes/autoencoder/tiny.py", *STEP.split()),
    "tiny diffusion, a run of one step": ("train_diffusion.py", "recipes/diffusion/tiny.py", *STEP.split()),
}


def seconds_of(command: tuple[str, ...]) -> float:
    """Seconds, or CPU seconds, of a process with an empty folder of runs."""
    with tempfile.TemporaryDirectory() as folder:
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
        environment = dict(os.environ) | {"LATENTDIFF_RUNS": folder, "PYTHONPATH": paths}
        process = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
        after, end = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    if process.returncode:
        raise UserError(f"{' '.join(command)} exited with code {process.returncode}: {process.stderr[-2000:]}")
    cpu_seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return cpu_seconds if time_key() == "cpu_seconds" else end - start


def startup(repeats: float) -> list[Measurement]:
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(scaled(3, repeats)):
        for name, command in COMMANDS.items():
            seconds[name].append(seconds_of(command))
    base, *others = COMMANDS
    return [spread(f"{name} / {base}", Spread.of([a / b for a, b in zip(seconds[name], seconds[base])]))
            for name in others]  # fmt: skip


BENCHMARKS = [
    Benchmark("startup", "processes from start to exit", startup,
              {"import latentdiff / import torch": Target(1.5, 1.5, "<=")}),
]  # fmt: skip
