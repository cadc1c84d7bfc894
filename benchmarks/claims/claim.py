"""What a claim is, and when it holds."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SIGNS = {">": 1, "<": -1}
VERDICTS = ("holds", "not seen", "contrary")


@dataclass(frozen=True)
class Setting:
    """What a measurement is made with."""

    run: str = "demo"  # the diffusion run whose pictures are judged
    count: int = 2000  # pictures of each arm
    seed: int = 0  # of the first picture; the same in every arm
    seeds: tuple[int, ...] = (0, 1, 2)  # of what is trained
    device: str = "auto"


@dataclass(frozen=True)
class Effect:
    """A number that the claim says to be above or below a bound, with its 95 % interval."""

    what: str
    expect: str  # such as "> 0" or "< 1"
    value: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        sign, bound = self.expect.split()
        ends = sorted(SIGNS[sign] * (end - float(bound)) for end in (self.low, self.high))
        return "holds" if ends[0] > 0 else "contrary" if ends[1] < 0 else "not seen"


@dataclass(frozen=True)
class Series:
    """A line, or bars, of a chart."""

    name: str
    x: list
    y: list[float]
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Chart:
    """x and y say what the axes are; numbers on x make lines, words make bars. log: x by its logarithm."""

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
        """A claim holds when all its effects do, and is contradicted by one that is."""
        found = [effect.verdict for effect in self.effects]
        return "contrary" if "contrary" in found else "not seen" if "not seen" in found else "holds"


@dataclass(frozen=True)
class Claim:
    name: str
    says: str  # the paper
    where: str
    measure: Callable[[Setting], Result]
    minutes: float  # on two cores, once what it needs is there
    trains: bool = False
    quick: bool = True  # part of --quick


def results() -> Path:
    return Path(__file__).resolve().parent.parent / "results" / "claims"


# ---- intervals


def bootstrap(values: Callable[[Tensor], float], n: int, draws: int = 400) -> tuple[float, float, float]:
    """values(weights [n]) with every item once, and the 95 % percentile interval over resampled items."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(draws):
        picks = torch.randint(n, (n,), generator=generator)
        found.append(values(torch.bincount(picks, minlength=n).double()))
    low, high = np.quantile(found, (0.025, 0.975))
    return values(torch.ones(n, dtype=torch.float64)), float(low), float(high)


def mean_interval(values: Tensor) -> tuple[float, float, float]:
    """The mean of paired differences of many samples, by the normal law: [n]."""
    values = values.double()
    half = 1.96 * values.std().item() / math.sqrt(len(values))
    return values.mean().item(), values.mean().item() - half, values.mean().item() + half


T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}


def paired_t(differences: list[float]) -> tuple[float, float, float]:
    """The mean of differences over seeds, with its t interval; one seed has no interval and can show nothing."""
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
