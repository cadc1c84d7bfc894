"""How time and memory grow with image size, batch size, caption length, cache size and the number of processes."""

import os
import socket
import subprocess
import sys

from benchmarks.speed import training
from benchmarks.speed.benchmark import Benchmark, Measurement, scaled, spread
from benchmarks.speed.interleave import Implementation, Spread, interleave, ratio

CASES = {  # what grows -> changes of the demo's size; the first case is the baseline
    "latent, batch size 8": {f"{side} x {side}": {"latent": (4, side, side), "batch": 8} for side in (8, 16, 32)},
    "batch size": {str(batch): {"batch": batch} for batch in (8, 32, 128)},
    "caption tokens": {str(tokens): {"context": (tokens, 128)} for tokens in (24, 77, 231)},
}


# ---- implementations


def run_ranks(record, count: int, **options) -> None:
    """The training step on `count` processes over gloo; this process is rank 0."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    os.environ |= {"RANK": "0", "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-c", f"from benchmarks.speed import scaling; scaling.run_other_rank({options!r})"]
    for rank in range(1, count):
        subprocess.Popen(command, env=dict(os.environ) | {"RANK": str(rank)})
    training.run_latentdiff(record, **options)


class NullRecorder:
    """`record` of the other ranks: DDP synchronizes them with rank 0."""

    def reset_memory(self) -> None:
        pass

    def __call__(self, **values) -> None:
        pass


def run_other_rank(options: dict) -> None:
    try:
        training.run_latentdiff(NullRecorder(), **options)
    except RuntimeError:  # rank 0 has exited
        sys.exit()


# ---- benchmarks


def sizes(repeats: float) -> list[Measurement]:
    measurements = []
    for what, cases in CASES.items():
        implementations = {
            name: Implementation("training:run_latentdiff", {"size": "demo"} | changes)
            for name, changes in cases.items()
        }
        results, (base, *others) = interleave(implementations, scaled(5, repeats)), cases
        for name in others:
            for quantity, key in (("time", ""), ("memory", "memory")):
                values = ratio(results[name], results[base], key)
                measurements.append(spread(f"{what}: {quantity}, {name} / {base}", values))
    return measurements


def cache_entries(repeats: float) -> list[Measurement]:
    implementations = {count: Implementation("data:open_cache", {"entries": count}) for count in (10**4, 10**7)}
    results = interleave(implementations, scaled(5, repeats))
    return [spread("latent cache: time to open and read 1,024 entries, 10^7 / 10^4 entries",
                   ratio(results[10**7], results[10**4]))]  # fmt: skip


def processes(repeats: float) -> list[Measurement]:
    implementations = {
        count: Implementation(
            "scaling:run_ranks",
            {"count": count, "size": "demo", "steps": 2, "batch": 32 // count},
            {"OMP_NUM_THREADS": "1"},
        )
        for count in (1, 2)
    }
    results = interleave(implementations, scaled(7, repeats))
    speedup = Spread.of([one["seconds"] / two["seconds"] for one, two in zip(results[1], results[2])])
    return [
        spread("speedup by 2 processes over gloo, one thread each, batch size 32 in total", speedup, note="wall time")
    ]


BENCHMARKS = [
    Benchmark("scaling", "the training step at the demo's size, and the latent cache: how time and memory grow",
              lambda repeats: [*sizes(repeats), *cache_entries(repeats), *processes(repeats)]),
]  # fmt: skip
