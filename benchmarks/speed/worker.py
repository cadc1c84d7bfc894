"""One contestant in a process of its own: it works whenever it is told to, so that contestants take turns.

    python -m benchmarks.speed.worker MODULE:FUNCTION OPTIONS      OPTIONS: a JSON object, of which "warm_up" is ours

A contestant is a function(done, **options) that sets itself up and then works for ever; after each repeat it calls
done(figure=value). The first `warm_up` calls return at once; from then on every repeat waits for a line on the standard
input and is answered by a line of JSON: its seconds, those of the processor, its memory, and what the contestant said.
A line before the first says that it is ready.
"""

import importlib
import json
import os
import sys
import time
from typing import Any, TextIO

from benchmarks.speed import machine


class Turns:
    """`done`, as a contestant is given it."""

    def __init__(self, orders: TextIO, answers: TextIO, warm_up: int) -> None:
        self.orders, self.answers, self.left, self.ready = orders, answers, warm_up, False
        self.settled()

    def settled(self) -> None:
        """What is in memory now is not counted."""
        self.resident = machine.resident()
        machine.forget_peak()

    def wait(self) -> None:
        """For the next order; there is none when the race is over."""
        if not self.ready:
            self.answer(ready=True)
            self.ready = True
        if not self.orders.readline():
            os._exit(0)  # nothing here is worth a clean end
        self.began, self.worked = time.perf_counter(), time.process_time()

    def answer(self, **facts: Any) -> None:
        print(json.dumps(facts), file=self.answers, flush=True)

    def __call__(self, **facts: Any) -> None:
        machine.synchronise()
        if self.left > 0:
            self.left -= 1
        elif self.left == 0:
            memory = machine.peak() - self.resident
            took, worked = time.perf_counter() - self.began, time.process_time() - self.worked
            self.answer(seconds=took, processor=worked, memory=memory, **facts)
        if self.left == 0:
            self.wait()

    def begin(self) -> None:
        """For contestants that do not warm up: the clock of the first repeat starts here."""
        if self.left == 0:
            self.wait()


def main(where: str, options: dict) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what is printed goes beside the answers
    module, name = where.split(":")
    contestant = getattr(importlib.import_module(f"benchmarks.speed.{module}"), name)
    machine.begin()
    contestant(Turns(sys.stdin, answers, options.pop("warm_up", 1)), **options)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
