import math

import pytest
import torch

from latentdiff import rng


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 16, 17, 63, 64, 65, 100, 1000, 4097])
def test_a_permutation_is_a_bijection(n):
    for key in (0, 1, rng.key(7, "order", 3)):
        assert sorted(rng.permute(i, n, key) for i in range(n)) == list(range(n))


def test_a_permutation_of_many_items_is_evaluated_by_index():
    n = 10**12 + 1
    assert all(0 <= rng.permute(i, n, 5) < n for i in (0, 1, n // 2, n - 1))


def test_permutations_differ_by_key_and_are_well_mixed():
    n = 500
    orders = [[rng.permute(i, n, rng.key(0, "order", epoch)) for i in range(n)] for epoch in range(40)]
    assert len(set(map(tuple, orders))) == 40
    for order in orders[:5]:
        assert sum(a == b for a, b in zip(order, orders[-1])) < 10  # one on average
        assert abs(torch.corrcoef(torch.tensor([list(range(n)), order]).double())[0, 1]) < 0.2
    means = torch.tensor(orders).double().mean(dim=1)  # every epoch is complete
    assert torch.allclose(means, torch.full_like(means, (n - 1) / 2))
    first = torch.tensor([rng.permute(0, n, rng.key(1, e)) for e in range(2000)]).double()
    assert first.mean().item() == pytest.approx((n - 1) / 2, abs=5 * n / math.sqrt(12 * 2000))


def test_keys_have_63_bits_and_depend_on_all_their_parts():
    parts = [(), (0,), (1,), ("1",), (0, 0), (0, "a"), ("0a",), (1, 23), (12, 3), (-1,)]
    keys = [rng.key(*p) for p in parts]
    assert len(set(keys)) == len(parts)
    assert all(0 <= k < 2**63 for k in keys)
    assert rng.key(3, "order", 5) == rng.key(3, "order", 5)


def test_a_key_depends_on_step_position_and_purpose():
    a = rng.keys(0, 5, range(4), "eps")
    assert a.tolist()[2:] == rng.keys(0, 5, range(2, 6), "eps").tolist()[:2]
    for other in (
        rng.keys(1, 5, range(4), "eps"),
        rng.keys(0, 6, range(4), "eps"),
        rng.keys(0, 5, range(4), "t"),
    ):
        assert not set(a.tolist()) & set(other.tolist())
    assert rng.keys(0, 0, range(0), "eps").shape == (0,)


def test_numbers_do_not_depend_on_the_rest_of_the_batch():
    keys = rng.keys(0, 1, range(8), "eps")
    for sample in (rng.uniform, rng.normal):
        batch = sample(keys, (3, 5))
        assert torch.equal(batch[5:], sample(keys[5:], (3, 5)))
        assert torch.equal(batch.flip(0), sample(keys.flip(0), (3, 5)))
        assert torch.equal(batch, sample(keys, (3, 5)))


def test_numbers_of_neighbouring_keys_differ():
    """Small or close keys such as 0, 1, 2 do not give shifted copies of one stream."""
    numbers = rng.uniform(torch.arange(100), (50,))
    assert numbers.unique().numel() == numbers.numel()
    assert torch.corrcoef(numbers).fill_diagonal_(0).abs().max() < 0.65  # the standard deviation of one is 0.14


def test_uniform_numbers_are_uniform():
    u = rng.uniform(rng.keys(0, 0, range(200), "u"), (500,)).flatten()  # 100,000
    assert u.dtype == torch.float64 and u.min() >= 0 and u.max() < 1
    for power in (1, 2, 3):
        assert (u**power).mean().item() == pytest.approx(1 / (power + 1), abs=0.004)
    counts = torch.histc(u.float(), 20, 0, 1)
    assert ((counts - 5000) ** 2 / 5000).sum() < 45  # chi squared, 19 degrees of freedom
    assert rng.uniform(torch.tensor([1, 2])).shape == (2,)


def test_normal_numbers_are_normal():
    x = rng.normal(rng.keys(0, 0, range(200), "n"), (500,), torch.float64).flatten()
    assert torch.isfinite(x).all()
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        assert (x**power).mean().item() == pytest.approx(moment, abs=0.08)
    assert (x.abs() > 3).double().mean().item() == pytest.approx(0.0027, abs=0.0008)
    assert rng.normal(torch.tensor([1]), (2,)).dtype == torch.float32


def test_every_bit_is_fair():
    bits = rng.bits(rng.keys(0, 0, range(400), "b"), 100).flatten()
    for position in (0, 1, 17, 31, 32, 47, 62, 63):
        assert (bits >> position & 1).double().mean().item() == pytest.approx(0.5, abs=0.01)
