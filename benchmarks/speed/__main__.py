"""How fast and how lean: beside diffusers, and beside the machine's own limit.

python -m benchmarks speed                   measure all that this machine can (20 minutes on two idle cores)
python -m benchmarks speed NAME ...          measure some; the results are merged into those that are there
python -m benchmarks speed --list            name the works
python -m benchmarks speed --page            write docs/benchmarks.md from the results alone

--share S     of the usual repeats (default 1)
--busy        for a machine that has other work: one thread, and the seconds of the processor

Contestants take turns, each in a process of its own. The results are benchmarks/results/speed.json.
"""

import argparse
import os
import time

import torch

from benchmarks.speed import coding, data, growth, machine, page, sampling, shipped, starting, training
from benchmarks.speed.work import Work
from latentdiff import cli
from latentdiff.config import UserError

PARTS = (training, shipped, sampling, coding, data, growth, starting)
WORKS: dict[str, Work] = {work.name: work for part in PARTS for work in part.WORKS}


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--page", action="store_true")
    options = parser.parse_args(words)
    unknown = [name for name in options.names if name not in WORKS]
    if unknown:
        raise UserError(f"no work is called {unknown[0]!r}; there are {', '.join(WORKS)}")
    if options.busy:
        os.environ |= {"LATENTDIFF_BENCH_CLOCK": "processor", "OMP_NUM_THREADS": "1"}
        torch.set_num_threads(1)
    if options.list:
        print("\n".join(f"  {work.name:<20}{work.says}" for work in WORKS.values()))
        return
    for work in [] if options.page else chosen(options.names):
        measure(work, options.share)
    found = page.read()
    print("\n".join(page.table(WORKS.values(), found, device=machine.device().type)))
    page.write(WORKS.values(), found)


def chosen(names: list[str]) -> list[Work]:
    able = [work for work in WORKS.values() if machine.device().type == "cuda" or not work.gpu]
    return [work for work in able if not names or work.name in names]


def measure(work: Work, share: float) -> None:
    print(f"{work.name}: {work.says}", flush=True)
    began = time.monotonic()
    rows = work.measure(share)
    for one in rows:
        print(f"  {one.what}: {page.figure(vars(one))}", flush=True)
    page.keep(work.name, rows, round(time.monotonic() - began), machine.device().type, machine.facts())


if __name__ == "__main__":
    cli.run(main)
