"""A speed benchmark and its measurements, some of which have a target."""

from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.speed import machine
from benchmarks.speed.interleave import Spread


@dataclass(frozen=True)
class Measurement:
    name: str
    value: float
    low: float  # quartiles
    high: float
    unit: str  # x: a ratio; %; MB; s; ...
    note: str = ""


@dataclass(frozen=True)
class Target:
    """The required value of a measurement per device, at least (">=") or at most ("<="); None: no target."""

    cpu: float | None
    gpu: float | None = None
    sign: str = ">="


@dataclass(frozen=True)
class Benchmark:
    name: str
    description: str
    measure: Callable[[float], list[Measurement]]  # called with a factor on the default number of repeats
    targets: dict[str, Target] = field(default_factory=dict)  # by the name of the measurement
    gpu_only: bool = False


def spread(name: str, values: Spread, unit: str = "x", note: str = "") -> Measurement:
    return Measurement(name, values.value, values.low, values.high, unit, note)


def single(name: str, value: float, unit: str, note: str = "") -> Measurement:
    return Measurement(name, value, value, value, unit, note)


def scaled(repeats: int, factor: float) -> int:
    return max(2, round(repeats * factor))


def on_gpu() -> bool:
    return machine.device().type == "cuda"
