"""The order of training at full scale, simulated: which rank reads which row of the cache, and when.

    python -m benchmarks scale [--rows 400000000] [--ranks 1024] [--batch 4096] [--shard-rows 131072] [--steps 200]

Nothing but the stream's own order (latentdiff.data.loader.Stream) is asked; no row is read. It tells

- balance: rows per rank and shard hits per step (the most and the fewest over ranks), 1 is even;
- shuffle: how far apart two rows that are neighbours on the disk come to be read, against a perfect shuffle, how often
  a batch holds two rows of one shard against the same, and whether an epoch is a permutation (on a sample);
- restart: seconds until a stream that begins at step 10^6 has its first index, and whether it is the one that an
  unbroken run would have had.
"""

import argparse
import json
import time
from collections import Counter
from dataclasses import dataclass

from latentdiff import cli, rng
from latentdiff.data.loader import Stream, micro_batches


@dataclass(frozen=True)
class Rows:
    """A data set of which only the length is asked."""

    count: int

    def __len__(self) -> int:
        return self.count


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=400_000_000)
    parser.add_argument("--ranks", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--shard-rows", type=int, default=131_072)
    parser.add_argument("--steps", type=int, default=200)
    o = parser.parse_args(words)
    print(json.dumps(simulate(o.rows, o.ranks, o.batch, o.shard_size, o.steps), indent=1))


def simulate(rows: int, ranks: int, batch: int, shard_size: int, steps: int, seed: int = 0) -> dict[str, float]:
    stream, micro = Stream(Rows(rows), seed, batch), [micro_batches(rank, ranks, batch, 1)[0] for rank in range(ranks)]
    read = [[stream.index(step, position) for position in range(batch)] for step in range(steps)]  # [steps][batch]
    return balance(read, micro, shard_size, rows) | shuffle(read, rows, shard_size, seed) | restart(stream, batch)


def balance(read: list[list[int]], micro: list[range], shard_size: int, rows: int) -> dict[str, float]:
    """How evenly ranks and shards are asked."""
    per_rank = [sum(len(positions) for _ in read) for positions in micro]
    shards = Counter(row // shard_size for batch in read for row in batch)
    even = sum(map(len, read)) * shard_size / rows  # rows of a whole shard that are read
    spread = (sum((shards[shard] - even) ** 2 for shard in range(rows // shard_size)) / (rows // shard_size)) ** 0.5
    return {
        "rows per rank, most / fewest": max(per_rank) / min(per_rank),
        "rows per shard, standard deviation / that of a fair draw": spread / even**0.5,
    }


def shuffle(read: list[list[int]], rows: int, shard_size: int, seed: int) -> dict[str, float]:
    """Against a perfect shuffle, of which the same figures are 1."""
    pairs = [(len(batch) - len({row // shard_size for row in batch})) for batch in read]
    shards, size = rows / shard_size, len(read[0])
    expected = size - shards * (1 - (1 - 1 / shards) ** size)
    key, some = rng.key(seed, "order", 0), range(0, rows - 1, max(1, rows // 20_000))
    apart = [abs(rng.permute(i, rows, key) - rng.permute(i + 1, rows, key)) for i in some]
    flat = [row for batch in read for row in batch]
    steps = [abs(a - b) for a, b in zip(flat, flat[1:])]
    return {
        "rows read twice in an epoch": len(flat) - len(set(flat)) if len(flat) <= rows else 0,
        "rows of a batch that share a shard / expected": sum(pairs) / len(pairs) / expected,
        "distance on the disk of rows read in turn / expected": sum(steps) / len(steps) / (rows / 3),
        "distance in time of neighbours on the disk / expected": sum(apart) / len(apart) / (rows / 3),
    }


def restart(stream: Stream, batch: int, step: int = 10**6) -> dict[str, float]:
    """A stream has no state: what is asked of it at a step is the same whenever it began."""
    began = time.perf_counter()
    again = [Stream(stream.data, stream.seed, batch).index(step, position) for position in range(batch)]
    took = time.perf_counter() - began
    same = again == [stream.index(step, position) for position in range(batch)]
    return {"a batch at step 10^6 is the same after a restart": float(same), "seconds to find it": round(took, 4)}


if __name__ == "__main__":
    cli.run(main)
