"""Datasets of torchvision by name."""

import pickle

import numpy as np
import pytest

from latentdiff.config import UserError
from latentdiff.data.torchvision_datasets import TorchvisionConfig, TorchvisionDataset


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Settings that read a CIFAR10 of a few random images, in its original file format."""
    from torchvision import datasets

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        rng = np.random.default_rng(len(name) + int(name[-1]) if name[-1].isdigit() else 9)
        entry = {"data": rng.integers(0, 255, (20, 3072), np.uint8), "labels": [i % 10 for i in range(20)]}
        (folder / name).write_bytes(pickle.dumps(entry))
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5: True)
    return TorchvisionConfig(path=str(tmp_path))


def test_class_names_give_labels_and_captions(cifar):
    data = TorchvisionDataset(cifar, "train")
    assert len(data) == 99 and data.label_names[9] == "truck"
    record = data.record(3, 0)
    assert record["caption"] == data.label_names[record["label"]]
    item = data.item(3, 0)
    assert item["image"].shape == (32, 32, 3) and item["label"] == record["label"] and data.captions()[0] == "airplane"
    assert data.fingerprint() == TorchvisionDataset(cifar, "train").fingerprint()


def test_val_is_held_out_of_train_and_test_is_separate(cifar):
    train, val, test = (TorchvisionDataset(cifar, split) for split in ("train", "val", "test"))
    assert len(train) + len(val) == 100 and len(val) == 1 and len(test) == 20
    ids_train, ids_val, ids_test = ({data.id(i) for i in range(len(data))} for data in (train, val, test))
    assert not ids_train & ids_val and all(id.startswith("CIFAR10-test") for id in ids_test)
    assert len({data.fingerprint() for data in (train, val, test)}) == 3


def test_a_dataset_without_splits_and_root_is_supported():
    config = TorchvisionConfig(name="FakeData", size=16, val_fraction=0.1)
    train, val = (TorchvisionDataset(config, split) for split in ("train", "val"))
    assert len(train) + len(val) == 1000 and 60 < len(val) < 140
    assert train.item(0, 1)["image"].shape == (16, 16, 3) and isinstance(train.record(0, 0)["label"], int)
    with pytest.raises(UserError, match="no captions"):
        train.captions()
    with pytest.raises(UserError, match="no split to test"):
        TorchvisionDataset(config, "test")


@pytest.mark.parametrize(
    "config, message",
    [
        (TorchvisionConfig(name="CIFAR"), "is not a dataset of torchvision; similar names: .*CIFAR10"),
        (TorchvisionConfig(name="VisionDataset"), "is not a dataset"),
        (TorchvisionConfig(name="wrap_dataset_for_transforms_v2"), "is not a dataset"),
        (TorchvisionConfig(name="CIFAR10", path="/no/such"), "data.download=true"),
        (TorchvisionConfig(name="FakeData", size=0), "data.size=0"),
    ],
)
def test_a_dataset_that_cannot_be_opened_is_refused_by_name(config, message):
    with pytest.raises(UserError, match=message):
        TorchvisionDataset(config, "train")


def test_downloading_in_several_processes_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="one process"):
        TorchvisionDataset(TorchvisionConfig(name="CIFAR10", path="/no/such", download=True), "train")
