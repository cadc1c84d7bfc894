"""The data order at full scale, simulated: which rank reads which entry of the latent cache, and when.

    python -m benchmarks scale [--entries 400000000] [--ranks 1024] [--batch 4096] [--shard-size 131072] [--steps 200]

Only the order of the data loader (latentdiff.data.loader.Stream) is computed; no entry is read. It reports

- balance: entries per rank and reads per shard, compared with an even distribution;
- shuffling, compared with a perfect shuffle: how far apart in time neighbours on disk are read, how often a batch has
  two entries of one shard, and whether an epoch is a permutation (on a sample);
- resuming: seconds until a stream that starts at step 10^6 has its first batch, and whether it is that of an
  uninterrupted run.
"""

import argparse
import json
import time
from collections import Counter
from dataclasses import dataclass

from latentdiff import cli, rng
from latentdiff.data.loader import Stream, micro_batches


@dataclass(frozen=True)
class Dataset:
    """A dataset that has only a length."""

    count: int

    def __len__(self) -> int:
        return self.count


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=400_000_000)
    parser.add_argument("--ranks", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--shard-size", type=int, default=131_072)
    parser.add_argument("--steps", type=int, default=200)
    o = parser.parse_args(argv)
    print(json.dumps(simulate(o.entries, o.ranks, o.batch, o.shard_size, o.steps), indent=1))


def simulate(entries: int, ranks: int, batch: int, shard_size: int, steps: int, seed: int = 0) -> dict[str, float]:
    stream = Stream(Dataset(entries), seed, batch)
    positions = [micro_batches(rank, ranks, batch, 1)[0] for rank in range(ranks)]
    order = [[stream.index(step, position) for position in range(batch)] for step in range(steps)]  # [steps][batch]
    return (
        balance(order, positions, shard_size, entries)
        | shuffling(order, entries, shard_size, seed)
        | resuming(stream, batch)
    )


def balance(order: list[list[int]], positions: list[range], shard_size: int, entries: int) -> dict[str, float]:
    """How evenly ranks and shards are used."""
    per_rank = [sum(len(of_rank) for _ in order) for of_rank in positions]
    shards = Counter(index // shard_size for batch in order for index in batch)
    mean = sum(map(len, order)) * shard_size / entries  # reads per full shard
    full_shards = range(entries // shard_size)
    deviation = (sum((shards[shard] - mean) ** 2 for shard in full_shards) / len(full_shards)) ** 0.5
    return {
        "entries per rank, max / min": max(per_rank) / min(per_rank),
        "reads per shard, standard deviation / that of a random order": deviation / mean**0.5,
    }


def shuffling(order: list[list[int]], entries: int, shard_size: int, seed: int) -> dict[str, float]:
    """Ratios to a perfect shuffle, which has 1 everywhere, and duplicates."""
    same_shard = [(len(batch) - len({index // shard_size for index in batch})) for batch in order]
    shards, size = entries / shard_size, len(order[0])
    expected = size - shards * (1 - (1 - 1 / shards) ** size)
    key, sample = rng.key(seed, "order", 0), range(0, entries - 1, max(1, entries // 20_000))
    in_time = [abs(rng.permute(i, entries, key) - rng.permute(i + 1, entries, key)) for i in sample]
    flat = [index for batch in order for index in batch]
    on_disk = [abs(a - b) for a, b in zip(flat, flat[1:])]
    return {
        "entries read twice in an epoch": len(flat) - len(set(flat)) if len(flat) <= entries else 0,
        "entries of a batch in the same shard / expected": sum(same_shard) / len(same_shard) / expected,
        "distance on disk of consecutive reads / expected": sum(on_disk) / len(on_disk) / (entries / 3),
        "distance in time of neighbours on disk / expected": sum(in_time) / len(in_time) / (entries / 3),
    }


def resuming(stream: Stream, batch: int, step: int = 10**6) -> dict[str, float]:
    """A stream has no state: its order at a step does not depend on where it started."""
    start = time.perf_counter()
    resumed = [Stream(stream.data, stream.seed, batch).index(step, position) for position in range(batch)]
    seconds = time.perf_counter() - start
    same = resumed == [stream.index(step, position) for position in range(batch)]
    return {"the batch of step 10^6 is the same after resuming": float(same), "seconds to find it": round(seconds, 4)}


if __name__ == "__main__":
    cli.run(main)
