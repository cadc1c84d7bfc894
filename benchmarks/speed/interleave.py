"""Runs several implementations in turns, each in its own process, so that a disturbance affects all of them."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latentdiff.config import UserError

ROOT = Path(__file__).resolve().parents[2]
Repeat = dict[str, Any]  # seconds, cpu_seconds, memory in MB, and the values that the implementation recorded


@dataclass(frozen=True)
class Implementation:
    function: str  # module:function of benchmarks.speed
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


class Worker:
    """The process of an implementation (worker.py)."""

    def __init__(self, implementation: Implementation) -> None:
        self.implementation, self.stderr = implementation, tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.folder = tempfile.TemporaryDirectory()
        paths = os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
        environment = dict(os.environ) | {"PYTHONPATH": paths, "TMPDIR": self.folder.name} | implementation.environment
        options = json.dumps(implementation.options)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.speed.worker", implementation.function, options],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.stderr, text=True, cwd=ROOT, env=environment,
        )  # fmt: skip

    def run_repeat(self) -> Repeat:
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self.read()

    def read(self) -> Repeat:
        line = self.process.stdout.readline()
        if not line:
            self.stderr.seek(0)
            name = f"{self.implementation.function} {self.implementation.options}"
            raise UserError(f"{name} failed: {self.stderr.read()[-2000:]}")
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.stderr.close()
        self.folder.cleanup()


def interleave(implementations: Mapping[str, Implementation], repeats: int) -> dict[str, list[Repeat]]:
    """The repeats of each implementation, in turns after all are ready; every other round is in reverse order."""
    workers: dict[str, Worker] = {}
    results: dict[str, list[Repeat]] = {name: [] for name in implementations}
    try:
        for name, implementation in implementations.items():
            workers[name] = Worker(implementation)
        for worker in workers.values():
            worker.read()  # it is ready
        for repeat in range(repeats):
            for name in list(implementations)[:: 1 if repeat % 2 == 0 else -1]:
                results[name].append(workers[name].run_repeat())
    finally:
        for worker in workers.values():
            worker.close()
    return results


def time_key() -> str:
    """The time that ratios are of: seconds, or on a busy machine cpu_seconds."""
    return os.environ.get("LATENTDIFF_BENCH_CLOCK", "seconds")


@dataclass(frozen=True)
class Spread:
    """The median of some numbers and their quartiles."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, value, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(value, low, high)


def ratio(slower: list[Repeat], faster: list[Repeat], key: str = "") -> Spread:
    """The ratio of a value (default: the time) of the first to that of the second, over pairs of repeats."""
    values = [[repeat[key or time_key()] for repeat in repeats] for repeats in (slower, faster)]
    return Spread.of([a / b for a, b in zip(*values)])
