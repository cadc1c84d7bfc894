"""Speed and memory, compared with diffusers and with the limit of the machine.

python -m benchmarks speed                   measure all that this machine can (20 minutes on two idle cores)
python -m benchmarks speed NAME ...          measure some; the results are merged into the existing ones
python -m benchmarks speed --list            list the benchmarks
python -m benchmarks speed --page            write docs/benchmarks.md from the results

--repeats F   a factor on the default number of repeats (default 1)
--busy        for a machine with other load: one thread, and CPU seconds instead of wall time

Implementations alternate, each in its own process. The results are benchmarks/results/speed.json.
"""

import argparse
import os
import time

import torch

from benchmarks.speed import (
    autoencoder,
    data,
    machine,
    page,
    sampling,
    scaling,
    startup,
    training,
    training_loops,
)
from benchmarks.speed.benchmark import Benchmark
from latentdiff import cli
from latentdiff.config import UserError

MODULES = (training, training_loops, sampling, autoencoder, data, scaling, startup)
BENCHMARKS: dict[str, Benchmark] = {b.name: b for module in MODULES for b in module.BENCHMARKS}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--repeats", type=float, default=1.0)
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--page", action="store_true")
    options = parser.parse_args(argv)
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        raise UserError(f"there is no benchmark {unknown[0]!r}; it must be one of {', '.join(BENCHMARKS)}")
    if options.busy:
        os.environ |= {"LATENTDIFF_BENCH_CLOCK": "cpu_seconds", "OMP_NUM_THREADS": "1"}
        torch.set_num_threads(1)
    if options.list:
        print("\n".join(f"  {b.name:<20}{b.description}" for b in BENCHMARKS.values()))
        return
    for benchmark in [] if options.page else selected(options.names):
        measure(benchmark, options.repeats)
    results = page.read()
    print("\n".join(page.table(BENCHMARKS.values(), results, device=machine.device().type)))
    page.write(BENCHMARKS.values(), results)


def selected(names: list[str]) -> list[Benchmark]:
    possible = [b for b in BENCHMARKS.values() if machine.device().type == "cuda" or not b.gpu_only]
    return [b for b in possible if not names or b.name in names]


def measure(benchmark: Benchmark, repeats: float) -> None:
    print(f"{benchmark.name}: {benchmark.description}", flush=True)
    start = time.monotonic()
    measurements = benchmark.measure(repeats)
    for measurement in measurements:
        print(f"  {measurement.name}: {page.to_text(vars(measurement))}", flush=True)
    seconds = round(time.monotonic() - start)
    page.add(benchmark.name, measurements, seconds, machine.device().type, machine.facts())


if __name__ == "__main__":
    cli.run(main)
