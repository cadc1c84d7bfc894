"""Warnings about a training run whose metrics stay out of their normal range."""

import math
from collections.abc import Callable
from typing import NamedTuple


class Rule(NamedTuple):
    """The normal range of a metric, and the warning for values outside."""

    name: str
    low: float
    high: float
    message: str  # a format string of {value} and {steps}, the number of steps outside of the range


class Diagnostics:
    """Warns once when a rule is broken for 1/20 of the run (100 to 1000 steps), and again if that recurs."""

    def __init__(self, rules: tuple[Rule, ...], steps: int, info: Callable[[str], None]) -> None:
        self.rules, self.info = rules, info
        self.patience = min(1000, max(100, steps // 20))
        self.broken_since: dict[Rule, int] = {}  # first step
        self.warned: set[Rule] = set()

    def check(self, step: int, metrics: dict[str, float] | None) -> None:
        """Check the metrics of a report or a validation; None, which Log.report returns between reports, is ignored."""
        for rule in self.rules if metrics else ():
            value = metrics.get(rule.name, math.nan)
            if math.isnan(value):
                continue
            if rule.low <= value <= rule.high:
                self.broken_since.pop(rule, None)
                self.warned.discard(rule)
                continue
            steps = step - self.broken_since.setdefault(rule, step)
            if steps >= self.patience and rule not in self.warned:
                self.warned.add(rule)
                self.info("WARNING: " + rule.message.format(value=value, steps=steps))
