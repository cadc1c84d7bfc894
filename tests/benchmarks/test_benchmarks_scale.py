"""The data order at scale: even over ranks and shards, well shuffled, and the same after resuming."""

import pytest

from benchmarks import scale


def test_ranks_and_shards_are_even_and_the_order_is_a_shuffle():
    result = scale.simulate(entries=20_000, ranks=16, batch=64, shard_size=500, steps=250)
    assert result["entries per rank, max / min"] == 1
    assert result["entries read twice in an epoch"] == 0
    assert result["the batch of step 10^6 is the same after resuming"] == 1
    for name in ("entries of a batch in the same shard / expected",
                 "distance on disk of consecutive reads / expected",
                 "distance in time of neighbours on disk / expected"):  # fmt: skip
        assert result[name] == pytest.approx(1, abs=0.05)
    assert result["reads per shard, standard deviation / that of a random order"] < 1.4


def test_a_sequential_order_is_not_a_shuffle():
    order = [[64 * step + i for i in range(64)] for step in range(100)]
    result = scale.shuffling(order, 20_000, 500, 0)
    assert result["entries of a batch in the same shard / expected"] > 1.3
    assert result["distance on disk of consecutive reads / expected"] < 0.01
    assert scale.balance([[0] * 64], [range(0, 48), range(48, 64)], 500, 20_000)["entries per rank, max / min"] == 3
