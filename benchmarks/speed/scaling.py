"""How time and memory grow: with the picture, the batch, the caption, the data set and the ranks."""

import os
import socket
import subprocess
import sys

from benchmarks.speed import training
from benchmarks.speed.race import Contestant, Spread, race, ratio
from benchmarks.speed.work import Row, Work, row, times

CASES = {  # what grows -> changes of the demo's size, the first of which the others are counted from
    "latent, batch 8": {f"{side} x {side}": {"latent": (4, side, side), "batch": 8} for side in (8, 16, 32)},
    "batch": {str(batch): {"batch": batch} for batch in (8, 32, 128)},
    "tokens of a caption": {str(tokens): {"context": (tokens, 128)} for tokens in (24, 77, 231)},
}


# ---- contestants


def ranks(done, count: int, **told) -> None:
    """The training step on so many ranks over gloo; this process is the first of them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    os.environ |= {"RANK": "0", "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-c", f"from benchmarks.speed import growth; growth.follow({told!r})"]
    for rank in range(1, count):
        subprocess.Popen(command, env=dict(os.environ) | {"RANK": str(rank)})
    training.ours(done, **told)


class Follower:
    """`done` of the other ranks: they work whenever the first does, since gradients are averaged."""

    def settled(self) -> None:
        pass

    def __call__(self, **facts) -> None:
        pass


def follow(told: dict) -> None:
    try:
        training.ours(Follower(), **told)
    except RuntimeError:  # the first is gone
        sys.exit()


# ---- works


def sizes(share: float) -> list[Row]:
    found = []
    for what, cases in CASES.items():
        field = {name: Contestant("training:ours", {"size": "demo"} | changes) for name, changes in cases.items()}
        turns, (first, *others) = race(field, times(5, share)), cases
        for name in others:
            for kind, figure in (("time", ""), ("memory", "memory")):
                found.append(row(f"{what}: {name} against {first}, {kind}", ratio(turns[name], turns[first], figure)))
    return found


def rows(share: float) -> list[Row]:
    field = {str(count): Contestant("data:opening", {"rows": count}) for count in (10**4, 10**7)}
    turns = race(field, times(5, share))
    return [row("rows of a cache: 10^7 against 10^4, time to open it and read 1,024",
                ratio(turns[str(10**7)], turns[str(10**4)]))]  # fmt: skip


def speedup(share: float) -> list[Row]:
    field = {str(count): Contestant("growth:ranks", {"count": count, "size": "demo", "steps": 2, "batch": 32 // count},
                                    {"OMP_NUM_THREADS": "1"}) for count in (1, 2)}  # fmt: skip
    turns = race(field, times(7, share))
    gains = Spread.of([one["seconds"] / two["seconds"] for one, two in zip(turns["1"], turns["2"])])
    return [row("2 ranks over gloo against 1, a thread each, batch 32 in all", gains, note="of wall time")]


WORKS = [
    Work("growth", "the training step at the demo's size, and the cache: how time and memory grow",
         lambda share: [*sizes(share), *rows(share), *speedup(share)]),
]  # fmt: skip
