"""A new data format needs a settings class with `open`, and a dataset with its ids, files and captions."""

import io
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from latentdiff.config import UserError
from latentdiff.data import loader
from latentdiff.data.dataset import Dataset, ImageDataConfig, Metadata, Subset, divide
from latentdiff.data.image import BadImage


@dataclass(frozen=True)
class ColourConfig(ImageDataConfig):
    size: int = 8  # pixels
    count: int = 6  # images
    captions: bool = True  # whether images have captions

    def open(self, split: str) -> "ColourDataset":
        return ColourDataset(self, split)


class ColourDataset(Dataset):
    """Image i is a PNG of one colour; the last one is damaged."""

    def __init__(self, config: ColourConfig, split: str) -> None:
        super().__init__(config, split)
        self.has_captions = config.captions

    def __len__(self) -> int:
        return self.config.count

    def id(self, i: int) -> str:
        return f"{self.split}-{i}"

    def content(self, i: int) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (12, 9), (i, i, i)).save(file, "PNG")
        return file.getvalue() if i < len(self) - 1 else b"damaged"

    def metadata(self, i: int) -> Metadata:
        if i == 1:
            raise BadImage("its metadata cannot be read")
        return Metadata([f"one {i}", f"two {i}"] if i else [], i % 2, {"score": 2 * i, "mean": "reserved"})


def test_a_minimal_format_gives_complete_items():
    data = ColourConfig(width=4).open("train")
    item = data.item(2, 0)
    assert item.keys() == {"id", "caption", "label", "score", "image", "view"}
    assert (item["id"], item["label"], item["score"]) == ("train-2", 0, 4)
    assert item["image"].shape == (8, 4, 3) and (item["image"] == 2).all()
    assert {data.record(2, key)["caption"] for key in range(20)} == {"one 2", "two 2"}
    assert data.record(0, 0)["caption"] == ""  # trains the unconditional model
    with pytest.raises(BadImage):
        data.item(5, 0)


def test_a_minimal_format_can_be_batched():
    (batch,) = loader.sequential_batches(ColourConfig().open("val"), range(6), 8)
    assert batch["image"].shape == (4, 8, 8, 3) and [id for id, _ in batch["bad"]] == ["val-1", "val-5"]


def test_captions_of_unreadable_metadata_are_left_out():
    assert ColourConfig(count=3).open("train").captions() == ["one 2", "two 2"]


def test_captions_may_be_limited_to_evenly_spaced_items():
    data = ColourConfig(count=10).open("train")
    data.max_captioned = 4
    assert data.captions()[::2] == ["one 3", "one 6", "one 9"]  # item 0 has none


def test_data_without_captions_is_an_error_only_if_they_are_read():
    data = ColourConfig(captions=False, path="here").open("train")
    assert "caption" not in data.record(2, 0)
    with pytest.raises(UserError, match="data.path='here' has no captions"):
        data.captions()


def test_the_fingerprint_depends_on_ids_and_preprocessing():
    fingerprints = [
        ColourConfig(**options).open(split).fingerprint()
        for options, split in [({}, "train"), ({"val_fraction": 0.5}, "train"), ({}, "val"), ({"size": 9}, "train"),
                               ({"width": 9}, "train"), ({"crop": "random"}, "train"), ({"flip": True}, "train")]
    ]  # fmt: skip
    assert fingerprints[0] == fingerprints[1] and len(set(fingerprints)) == 6


@pytest.mark.parametrize(
    "options, message",
    [
        ({"size": 0}, "data.size=0"),
        ({"crop": "middle"}, "data.crop is 'middle'; it must be center or random"),
        ({"val_fraction": 1.0}, "data.val_fraction is 1.0; it must be a fraction from 0 to below 1"),
        ({"max_bad_fraction": -0.1}, "data.max_bad_fraction is -0.1; it must be a fraction from 0 to 1"),
    ],
)
def test_preprocessing_out_of_range_is_refused_when_the_data_is_opened(options, message):
    with pytest.raises(UserError, match=message):
        ColourConfig(**options).open("train")


def test_a_subset_is_the_first_items_with_the_same_names():
    data = ColourConfig().open("train")
    data.label_names = ["even", "odd"]
    subset = Subset(data, 2)
    assert len(subset) == 2 and subset.label_names == ["even", "odd"] and subset.fingerprint() != data.fingerprint()
    assert np.array_equal(subset.item(0, 3)["image"], data.item(0, 3)["image"])


def test_a_division_keeps_the_split_of_an_item_when_others_are_added():
    names = [f"image-{i}" for i in range(200)]
    val = divide(names, 0.1, "val")
    assert sorted(val + divide(names, 0.1, "train")) == sorted(names) and 5 <= len(val) <= 40
    assert set(divide(names[:100], 0.1, "val")) == set(val) & set(names[:100])
    assert len(divide(names[:3], 1e-9, "val")) == 1 and divide(names[:1], 0.1, "val") in ([], names[:1])
    assert divide(names, 0.1, "test") == [] == divide(names, 0.0, "test")
    assert divide(names, 0.0, "val") == [] and divide(names, 0.0, "train") == names
