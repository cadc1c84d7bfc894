"""Plain words about a run that is unwell: what is amiss for long is said once, and again if it comes back."""

import math
from collections.abc import Callable
from typing import NamedTuple


class Rule(NamedTuple):
    """A number of the log, the range in which all is well, and what to say beside it."""

    name: str
    low: float
    high: float
    words: str  # {value} and {steps}, for how many it has been so, are filled in


class Health:
    """Looks at every report and validation; a rule must be broken for a twentieth of the run, 100 to 1000 steps."""

    def __init__(self, rules: tuple[Rule, ...], steps: int, say: Callable[[str], None]) -> None:
        self.rules, self.say = rules, say
        self.patience = min(1000, max(100, steps // 20))
        self.since: dict[Rule, int] = {}  # since which step a rule is broken
        self.told: set[Rule] = set()

    def look(self, step: int, values: dict[str, float] | None) -> None:
        """Numbers as they are reported after `step` steps; None where there was no report."""
        for rule in self.rules if values else ():
            value = values.get(rule.name, math.nan)
            if math.isnan(value):
                continue
            if rule.low <= value <= rule.high:
                self.since.pop(rule, None)
                self.told.discard(rule)
                continue
            steps = step - self.since.setdefault(rule, step)
            if steps >= self.patience and rule not in self.told:
                self.told.add(rule)
                self.say("WARNING: " + rule.words.format(value=value, steps=steps))
