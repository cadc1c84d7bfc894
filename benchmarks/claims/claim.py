"""A claim of the paper, the result of its measurement, and the verdict."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SIGNS = {">": 1, "<": -1}
VERDICTS = ("holds", "inconclusive", "contradicted")


@dataclass(frozen=True)
class Setting:
    """What all measurements share."""

    run: str = "demo"  # the diffusion run that is sampled
    count: int = 2000  # images per arm
    seed: int = 0  # of the first image, the same in every arm
    seeds: tuple[int, ...] = (0, 1, 2)  # of the training runs
    device: str = "auto"


@dataclass(frozen=True)
class Effect:
    """A number that the claim expects above or below a bound, with its 95 % interval."""

    name: str
    expected: str  # such as "> 0" or "< 1"
    value: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        sign, bound = self.expected.split()
        ends = sorted(SIGNS[sign] * (end - float(bound)) for end in (self.low, self.high))
        return "holds" if ends[0] > 0 else "contradicted" if ends[1] < 0 else "inconclusive"


@dataclass(frozen=True)
class Series:
    """A line, or a group of bars, of a chart; low and high are the ends of the intervals."""

    name: str
    x: list
    y: list[float]
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Chart:
    """x and y are the axis labels. Numbers as x make a line chart, strings a bar chart. log: log scale for x."""

    x: str
    y: str
    series: list[Series]
    log: bool = False


@dataclass(frozen=True)
class Result:
    data: str
    protocol: str
    effects: list[Effect]
    charts: list[Chart]
    note: str = ""

    @property
    def verdict(self) -> str:
        """A claim holds if all its effects do; one contradicted effect contradicts it."""
        verdicts = [effect.verdict for effect in self.effects]
        return next((v for v in reversed(VERDICTS) if v in verdicts), "holds")


@dataclass(frozen=True)
class Claim:
    name: str
    statement: str  # what the paper claims
    source: str  # where in the paper
    measure: Callable[[Setting], Result]
    minutes: float  # on two CPU cores, without the runs that it needs
    trains: bool = False
    quick: bool = True  # part of --quick


def results_dir() -> Path:
    return Path(__file__).resolve().parent.parent / "results" / "claims"


# ---- 95 % intervals: (value, low, high)


def bootstrap(statistic: Callable[[Tensor], float], n: int, resamples: int = 400) -> tuple[float, float, float]:
    """statistic(weights [n]) with equal weights, and its percentile interval over bootstrap resamples."""
    generator = torch.Generator().manual_seed(0)
    values = []
    for _ in range(resamples):
        indices = torch.randint(n, (n,), generator=generator)
        values.append(statistic(torch.bincount(indices, minlength=n).double()))
    low, high = np.quantile(values, (0.025, 0.975))
    return statistic(torch.ones(n, dtype=torch.float64)), float(low), float(high)


def mean_interval(values: Tensor) -> tuple[float, float, float]:
    """The mean of paired differences [n] of many samples, with its normal interval."""
    values = values.double()
    half = 1.96 * values.std().item() / math.sqrt(len(values))
    return values.mean().item(), values.mean().item() - half, values.mean().item() + half


T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}


def paired_t(differences: list[float]) -> tuple[float, float, float]:
    """The mean of differences over seeds, with its t interval, which is infinite for a single seed."""
    n, mean = len(differences), float(np.mean(differences))
    if n < 2:
        return mean, -math.inf, math.inf
    half = T95.get(n, 1.96) * float(np.std(differences, ddof=1)) / math.sqrt(n)
    return mean, mean - half, mean + half


def median_interval(values: list[float]) -> tuple[float, float, float]:
    """The median of repeated timings, with its interval from order statistics (normal approximation)."""
    ordered, n = sorted(values), len(values)
    half = 0.98 * math.sqrt(n)
    return ordered[n // 2], ordered[max(0, int(n / 2 - half))], ordered[min(n - 1, int(n / 2 + half) + 1)]
