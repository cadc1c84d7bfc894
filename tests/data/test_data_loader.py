import subprocess
import sys
from itertools import islice

import numpy as np
import pytest
import torch

from latentdiff.config import UserError
from latentdiff.data import loader
from latentdiff.data.dataset import Dataset, Subset
from latentdiff.data.image import BadImage
from latentdiff.data.shapes.dataset import ShapesConfig, ShapesDataset


class Numbers(Dataset):
    """Item i is an image of colour i; some cannot be read."""

    def __init__(self, n, bad=()):
        self.n, self.bad, self.calls = n, set(bad), []

    def __len__(self):
        return self.n

    def id(self, i):
        return f"image-{i}"

    def record(self, i, key):
        return {"id": self.id(i), "caption": f"number {i}", "key": key}

    def item(self, i, key):
        self.calls.append((i, key))
        if i in self.bad:
            raise BadImage("is truncated")
        return self.record(i, key) | {"image": np.full((2, 2, 3), i, np.uint8)}

    def captions(self):
        return [f"number {i}" for i in range(self.n)]

    def fingerprint(self):
        return f"numbers-{self.n}"


def items_of_batches(data, micro_batches, start, steps, batch_size, seed=0):
    """The item numbers of each batch."""
    stream = loader.batches(data, seed, batch_size, micro_batches, start, steps)
    return [batch["image"][:, 0, 0, 0].tolist() for batch in stream]


def test_an_epoch_contains_every_item_once():
    items = sum(items_of_batches(Numbers(10), [range(4)], 0, 10, 4), [])  # 4 epochs; batches span two
    epochs = [items[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert items != sum(items_of_batches(Numbers(10), [range(4)], 0, 10, 4, seed=1), [])


def test_a_resumed_stream_continues_at_the_given_step():
    complete = items_of_batches(Numbers(10), [range(4)], 0, 9, 4)
    assert items_of_batches(Numbers(10), [range(4)], 5, 9, 4) == complete[5:]
    assert items_of_batches(Numbers(10), [range(4)], 9, 9, 4) == []


def test_ranks_and_micro_batches_divide_the_same_global_batch():
    expected = [sorted(batch) for batch in items_of_batches(Numbers(50), [range(12)], 0, 4, 12)]
    for world_size, grad_accum_steps in ((2, 1), (1, 3), (2, 3)):
        batches_of_ranks = []
        for rank in range(world_size):
            micro_batches = loader.micro_batches(rank, world_size, 12, grad_accum_steps)
            batches = iter(items_of_batches(Numbers(50), micro_batches, 0, 4, 12))
            batches_of_ranks.append([sum(islice(batches, grad_accum_steps), []) for _ in range(4)])
        assert [sorted(sum(step, [])) for step in zip(*batches_of_ranks)] == expected


def test_a_batch_size_that_the_ranks_cannot_divide_is_refused():
    message = "train.batch_size is 6; with 2 processes and train.grad_accum_steps=2 it must be a multiple of 4"
    with pytest.raises(UserError, match=message):
        loader.micro_batches(0, 2, 6, 2)


def test_worker_processes_do_not_change_the_batches():
    data, contents = Numbers(10), []
    for num_workers in (0, 2):
        batches = loader.batches(data, 0, 4, [range(2), range(2, 4)], 2, 5, num_workers)
        contents.append([batch["image"].tolist() + batch["key"].tolist() for batch in batches])
    assert contents[0] == contents[1]


def test_the_key_of_an_item_depends_on_its_position_and_step():
    keys = [b["key"].tolist() for b in loader.batches(Numbers(1), 0, 2, [range(2)], 0, 3)]
    assert len(set(sum(keys, []))) == 6  # one image, six different crops
    assert keys[1:] == [b["key"].tolist() for b in loader.batches(Numbers(1), 0, 2, [range(2)], 1, 3)]


def test_a_bad_image_is_replaced_and_listed():
    data = Numbers(10, bad=(3, 7))
    batches = list(loader.batches(data, 0, 5, [range(5)], 0, 20))
    assert all(len(b["image"]) == 5 for b in batches)
    items = torch.cat([b["image"][:, 0, 0, 0] for b in batches]).tolist()
    assert not {3, 7} & set(items)
    bad = [entry for b in batches for entry in b["bad"]]
    assert set(bad) == {("image-3", "is truncated"), ("image-7", "is truncated")}
    repeated = [b["image"].tolist() for b in loader.batches(Numbers(10, bad=(3, 7)), 0, 5, [range(5)], 0, 20)]
    assert repeated == [b["image"].tolist() for b in batches]


def test_data_with_only_bad_images_is_refused():
    with pytest.raises(UserError, match="100 items in a row cannot be read.*is truncated"):
        next(loader.batches(Numbers(3, bad=(0, 1, 2)), 0, 2, [range(2)], 0, 1))


def test_sequential_batches_contain_every_item_once_and_list_bad_images():
    batches = list(loader.sequential_batches(Numbers(10, bad=(0, 4, 5)), range(0, 10), 2))
    assert [b["image"][:, 0, 0, 0].tolist() for b in batches] == [[1], [2, 3], [6, 7], [8, 9]]
    assert [b["index"].tolist() for b in batches] == [[1], [2, 3], [6, 7], [8, 9]]
    assert [b["bad"] for b in batches] == [[("image-0", "is truncated")], [], [], []]
    assert [b["index"].tolist() for b in loader.sequential_batches(Numbers(10), range(3, 6), 2)] == [[3, 4], [5]]


def test_collate_stacks_arrays_and_numbers_and_lists_the_rest():
    items = [{"image": np.zeros((2, 2, 3), np.uint8), "label": np.int64(i), "caption": str(i), "flag": True,
              "boxes": np.zeros((i, 5)), "score": 1, "bad": [("a", "b")] * i} for i in (1, 2)]  # fmt: skip
    del items[0]["score"]
    batch = loader.collate(items)
    assert batch["image"].shape == (2, 2, 2, 3) and batch["label"].tolist() == [1, 2]
    assert batch["label"].dtype == torch.int64 and batch["caption"] == ["1", "2"] and batch["flag"] == [True, True]
    assert isinstance(batch["boxes"], list) and "score" not in batch and len(batch["bad"]) == 3


def test_images_are_scaled_to_minus_one_to_one():
    x = loader.images({"image": torch.tensor([[[[0, 128, 255]]]], dtype=torch.uint8)})
    assert x.shape == (1, 3, 1, 1) and x.flatten().tolist() == pytest.approx([-1, 1 / 255, 1], abs=1e-6)


def test_a_subset_contains_only_the_first_items():
    data = Subset(Numbers(10), 3)
    assert len(data) == 3 and set(sum(items_of_batches(data, [range(4)], 0, 5, 4), [])) == {0, 1, 2}
    assert data.fingerprint() not in (Numbers(10).fingerprint(), Subset(Numbers(10), 2).fingerprint())
    assert len(Subset(Numbers(10), 99)) == 10
    shapes = ShapesDataset(ShapesConfig())
    assert Subset(shapes, 3).label_names == shapes.label_names  # sample.py reads them
    assert data.id(2) == "image-2" and data.record(1, 5)["key"] == 5 and data.captions()


def test_numbers_too_large_for_a_tensor_stay_in_a_list():
    items = [{"user": 10**30, "n": 1, "bad": []}, {"user": 2, "n": 2, "bad": []}]
    batch = loader.collate(items)
    assert batch["user"] == [10**30, 2] and batch["n"].tolist() == [1, 2]


OPEN_STREAM = """
from latentdiff.data import loader
from latentdiff.data.shapes.dataset import ShapesConfig, ShapesDataset
stream = loader.batches(ShapesDataset(ShapesConfig(count=8), "train"), 0, 4, [range(4)], 0, 100, num_workers=1)
next(stream)
"""


@pytest.mark.slow
def test_python_exits_while_a_stream_with_workers_is_open():
    result = subprocess.run([sys.executable, "-c", OPEN_STREAM], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and result.stderr == ""
