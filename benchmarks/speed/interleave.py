"""Contestants side by side: each in a process of its own, taking turns, so that what disturbs one disturbs all."""

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
Turn = dict[str, Any]  # seconds, memory in MB, and what the contestant said


@dataclass(frozen=True)
class Contestant:
    where: str  # module:function of benchmarks.speed
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


class Process:
    """A contestant at work."""

    def __init__(self, one: Contestant) -> None:
        self.one, self.said = one, tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.folder = tempfile.TemporaryDirectory()
        paths = os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.speed.worker", one.where, json.dumps(one.options)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said, text=True,
            cwd=ROOT, env=dict(os.environ) | {"PYTHONPATH": paths, "TMPDIR": self.folder.name} | one.environment,
        )  # fmt: skip

    def turn(self) -> Turn:
        """One repeat."""
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> Turn:
        answer = self.process.stdout.readline()
        if not answer:
            self.said.seek(0)
            raise UserError(f"{self.one.where} {self.one.options} failed: {self.said.read()[-2000:]}")
        return json.loads(answer)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.said.close()
        self.folder.cleanup()


def race(contestants: Mapping[str, Contestant], repeats: int) -> dict[str, list[Turn]]:
    """The turns of each, one after the other, once all have set themselves up; every other round goes backwards."""
    running: dict[str, Process] = {}
    turns: dict[str, list[Turn]] = {name: [] for name in contestants}
    try:
        for name, one in contestants.items():
            running[name] = Process(one)
        for process in running.values():
            process.answer()  # it is ready
        for repeat in range(repeats):
            for name in list(contestants)[:: 1 if repeat % 2 == 0 else -1]:
                turns[name].append(running[name].turn())
    finally:
        for process in running.values():
            process.close()
    return turns


def clock() -> str:
    """What ratios are of: seconds, or, on a machine that is busy with other things, those of the processor."""
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


def ratio(slower: list[Turn], faster: list[Turn], what: str = "", per: str = "") -> Spread:
    """How many times more the first takes, by pairs of turns; per: a figure of the turn that it is divided by."""
    cost = [[turn[what or clock()] / (turn[per] if per else 1) for turn in turns] for turns in (slower, faster)]
    return Spread.of([a / b for a, b in zip(*cost)])
