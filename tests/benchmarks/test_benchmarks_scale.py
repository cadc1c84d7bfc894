"""The order at scale: ranks and shards are even, the shuffle is one, and a restart changes nothing."""

import pytest

from benchmarks import scale


def test_ranks_and_shards_are_even_and_the_shuffle_is_fair():
    found = scale.simulate(rows=20_000, ranks=16, batch=64, shard_size=500, steps=250)
    assert found["rows per rank, most / fewest"] == 1
    assert found["rows read twice in an epoch"] == 0
    assert found["a batch at step 10^6 is the same after a restart"] == 1
    for what in ("rows of a batch that share a shard / expected",
                 "distance on the disk of rows read in turn / expected",
                 "distance in time of neighbours on the disk / expected"):  # fmt: skip
        assert found[what] == pytest.approx(1, abs=0.05)
    assert found["rows per shard, standard deviation / that of a fair draw"] < 1.4


def test_an_order_that_is_none_is_told_apart():
    read = [[64 * step + i for i in range(64)] for step in range(100)]
    found = scale.shuffle(read, 20_000, 500, 0)
    assert found["rows of a batch that share a shard / expected"] > 1.3
    assert found["distance on the disk of rows read in turn / expected"] < 0.01
    assert scale.balance([[0] * 64], [range(0, 48), range(48, 64)], 500, 20_000)["rows per rank, most / fewest"] == 3
