import pytest
import torch

from latentdiff.conditioning.cond import Cond, cat


def context(length, value=1.0, mask=None):
    return Cond(context=torch.full((2, length, 4), value), context_mask=mask)


def test_an_empty_cond_changes_nothing():
    cond = Cond(torch.ones(2, 1, 3, 3), torch.ones(2, 5, 4), torch.ones(2, 5, dtype=torch.bool), torch.ones(2, 6))
    for joined in (cond | Cond(), Cond() | cond):
        for name in ("concat", "context", "context_mask", "vector"):
            assert torch.equal(getattr(joined, name), getattr(cond, name))
    assert Cond() | Cond() == Cond()


def test_each_door_joins_in_its_own_way():
    a = Cond(torch.zeros(2, 1, 3, 3), torch.zeros(2, 5, 4), None, torch.full((2, 6), 2.0))
    b = Cond(torch.ones(2, 2, 3, 3), torch.ones(2, 3, 4), None, torch.full((2, 6), 3.0))
    joined = a | b
    assert joined.concat.shape == (2, 3, 3, 3) and joined.concat[0, :, 0, 0].tolist() == [0, 1, 1]
    assert joined.context.shape == (2, 8, 4) and joined.context[0, :, 0].tolist() == [0] * 5 + [1] * 3
    assert joined.context_mask is None
    assert torch.equal(joined.vector, torch.full((2, 6), 5.0))


def test_a_context_without_a_mask_is_all_seen_beside_one_that_has_one():
    mask = torch.tensor([[True, False], [True, True]])
    assert (context(2, mask=mask) | context(3)).context_mask.tolist() == [[1, 0, 1, 1, 1], [1, 1, 1, 1, 1]]
    assert (context(3) | context(2, mask=mask)).context_mask.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert torch.equal((context(2, mask=mask) | Cond(vector=torch.ones(2, 1))).context_mask, mask)


def test_joining_is_associative():
    masks = [None, torch.tensor([[True, False], [False, True]]), None]
    a, b, c = (context(2, float(i), mask) for i, mask in enumerate(masks))
    left, right = (a | b) | c, a | (b | c)
    assert torch.equal(left.context, right.context) and torch.equal(left.context_mask, right.context_mask)


def test_cat_stacks_along_the_batch():
    a, b = context(2, 0.0), context(2, 1.0)
    both = cat([a, b])
    assert both.context[:, 0, 0].tolist() == [0, 0, 1, 1]
    assert both.concat is None and both.vector is None and both.context_mask is None


def test_map_reaches_every_tensor_that_is_there():
    cond = Cond(concat=torch.ones(2, 1, 3, 3), vector=torch.ones(2, 6)).map(lambda x: x[:1] * 2)
    assert cond.concat.shape == (1, 1, 3, 3) and cond.vector.tolist() == [[2] * 6]
    assert cond.context is None


def test_contexts_of_two_widths_do_not_join():
    with pytest.raises(RuntimeError):
        context(2) | Cond(context=torch.ones(2, 3, 5))
