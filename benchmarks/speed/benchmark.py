"""What a work is, and what it leaves: rows of figures, each perhaps with a bar."""

from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.speed import machine
from benchmarks.speed.race import Spread


@dataclass(frozen=True)
class Row:
    what: str
    value: float
    low: float  # quartiles
    high: float
    unit: str  # x: a ratio; %; MB; s; ...
    note: str = ""


@dataclass(frozen=True)
class Bar:
    """What is asked of a row: at least (sign ">=") or at most ("<=") a number; None: nothing on that device."""

    cpu: float | None
    gpu: float | None = None
    sign: str = ">="


@dataclass(frozen=True)
class Work:
    name: str
    says: str
    measure: Callable[[float], list[Row]]  # how many times the usual repeats
    bars: dict[str, Bar] = field(default_factory=dict)  # by Row.what
    gpu: bool = False  # too large for CPUs


def row(what: str, spread: Spread, unit: str = "x", note: str = "") -> Row:
    return Row(what, spread.value, spread.low, spread.high, unit, note)


def once(what: str, value: float, unit: str, note: str = "") -> Row:
    return Row(what, value, value, value, unit, note)


def times(repeats: int, share: float) -> int:
    return max(2, round(repeats * share))


def on_gpu() -> bool:
    return machine.device().type == "cuda"
