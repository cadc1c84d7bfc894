"""One implementation in its own process, which runs one repeat per request, so that implementations alternate.

    python -m benchmarks.speed.worker MODULE:FUNCTION OPTIONS      OPTIONS: a JSON object; "warm_up" is read here

An implementation is a function(record, **options) that sets itself up and then repeats its work in an endless loop;
after each repeat it calls record(name=value). The first `warm_up` calls return at once. Then every repeat starts
with a line on stdin and ends with a line of JSON on stdout: its seconds, cpu_seconds, memory and the recorded values. A
line of JSON before the first repeat signals that the process is ready.
"""

import importlib
import json
import os
import sys
import time
from typing import Any, TextIO

from benchmarks.speed import machine


class Recorder:
    """The `record` argument of an implementation."""

    def __init__(self, stdin: TextIO, stdout: TextIO, warm_up: int) -> None:
        self.stdin, self.stdout, self.remaining, self.ready = stdin, stdout, warm_up, False
        self.reset_memory()

    def reset_memory(self) -> None:
        """Memory that is in use now is not counted."""
        self.resident = machine.resident()
        machine.reset_peak()

    def wait(self) -> None:
        """Wait for the next repeat; the process exits if there is none."""
        if not self.ready:
            self.write(ready=True)
            self.ready = True
        if not self.stdin.readline():
            os._exit(0)  # without clean-up, which may take long
        self.start, self.cpu_start = time.perf_counter(), time.process_time()

    def write(self, **values: Any) -> None:
        print(json.dumps(values), file=self.stdout, flush=True)

    def __call__(self, **values: Any) -> None:
        machine.synchronize()
        if self.remaining > 0:
            self.remaining -= 1
        elif self.remaining == 0:
            memory = machine.peak() - self.resident
            seconds, cpu_seconds = time.perf_counter() - self.start, time.process_time() - self.cpu_start
            self.write(seconds=seconds, cpu_seconds=cpu_seconds, memory=memory, **values)
        if self.remaining == 0:
            self.wait()

    def begin(self) -> None:
        """Without warm-up, the first repeat starts here."""
        if self.remaining == 0:
            self.wait()


def main(function: str, options: dict) -> None:
    stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # prints of the implementation go to stderr
    module, name = function.split(":")
    implementation = getattr(importlib.import_module(f"benchmarks.speed.{module}"), name)
    machine.set_up()
    implementation(Recorder(sys.stdin, stdout, options.pop("warm_up", 1)), **options)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
