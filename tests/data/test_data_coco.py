"""COCO's annotations give the same records as a metadata table, and what is wrong in them is counted."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from latentdiff.config import UserError
from latentdiff.data.coco import CocoConfig
from latentdiff.data.folder import FolderConfig, FolderDataset

DATA = Path(os.environ.get("LATENTDIFF_DATA", "data"))
CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., FolderDataset]:
    """make({file: annotations}, images, split, field=value)."""

    def make(files: dict[str, object], images: tuple[str, ...] = (), split: str = "train", **options) -> FolderDataset:
        for name in images:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (12, 8)).save(tmp_path / name)
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return FolderDataset(CocoConfig(**{"path": str(tmp_path), "size": 8, "val_fraction": 0.0} | options), split)

    return make


def images(*names: str) -> list[dict]:
    return [{"id": 100 + i, "file_name": name, "width": 12, "height": 8} for i, name in enumerate(names)]


def instances(*boxes: tuple) -> dict:
    """(number of the image, bbox, category) ..."""
    entries = [{"image_id": 100 + i, "bbox": box, "category_id": kind} for i, box, kind in boxes]
    return {"images": images("a.jpg", "b.jpg"), "annotations": entries, "categories": CATEGORIES}


TRAIN = ("train2017/a.jpg", "train2017/b.jpg")


def test_captions_and_boxes_are_joined_in_coco_layout(make):
    said = {
        "images": images("a.jpg", "b.jpg"),
        "annotations": [{"image_id": 100, "caption": c} for c in ("one", "two ")],
    }
    files = {"annotations/captions_train2017.json": said}
    files["annotations/instances_train2017.json"] = instances((0, [1, 2, 3, 4], 7), (0, [0, 0, 1.5, 1], 3))
    files["annotations/person_keypoints_train2017.json"] = instances((1, [0, 0, 1, 1], 7))  # is not read
    files["annotations/captions_val2017.json"] = {"images": images("c.jpg"), "annotations": []}
    data = make(files, (*TRAIN, "val2017/c.jpg"))
    assert data.ids == list(TRAIN) and data.category_names == ["cat", "dog"] and data.unreadable == []
    assert {data.record(0, key)["caption"] for key in range(20)} == {"one", "two"}
    assert data.record(0, 0)["objects"] == {"bbox": [[1, 2, 3, 4], [0, 0, 1.5, 1]], "categories": [1, 0]}
    nothing = {"bbox": [], "categories": []}
    assert data.record(1, 0) == {"id": TRAIN[1], "width": 12, "height": 8, "objects": nothing, "caption": ""}
    assert data.item(0, 0)["image"].shape == (8, 8, 3)
    assert make({}, split="val").ids == ["val2017/c.jpg"]


def test_annotations_may_lie_beside_the_images(make):
    data = make({"train/_annotations.coco.json": instances((1, [0, 0, 2, 2], 3))}, ("train/a.jpg", "train/b.jpg"))
    assert data.ids == ["train/a.jpg", "train/b.jpg"] and data.record(1, 0)["objects"]["categories"] == [0]


def test_crowds_are_left_out(make):
    annotations = instances((0, [0, 0, 1, 1], 3))
    annotations["annotations"][0]["iscrowd"] = 1
    assert make({"instances_train2017.json": annotations}, TRAIN).record(0, 0)["objects"]["bbox"] == []


def test_what_is_wrong_is_counted_with_its_place(make):
    annotations = instances((0, [1, 2, 3], 3), (0, [0, 0, 1, 0], 3), (0, ["x", 0, 1, 1], 3), (0, [0, 0, 1, 1], 99))
    annotations["images"] += [
        {"id": 1},
        5,
        {"id": 2, "file_name": "../../etc/passwd"},
        {"id": [], "file_name": "a.jpg"},
    ]
    annotations["annotations"] += ["x", {"image_id": {}}, {"image_id": 5555, "bbox": 1}]
    data = make({"instances_train2017.json": annotations}, TRAIN, max_bad_fraction=1.0)
    assert len(data) == 2 and data.record(0, 0)["objects"]["bbox"] == []
    assert len(data.unreadable) == 4 + 4 + 2
    assert ("instances_train2017.json: images[2]", "needs an id and a file_name") in data.unreadable
    with pytest.raises(UserError, match="10 of 12 images cannot be used"):
        make({})


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"images": 3}', "[" * 3000, "\x00", '{"images": [' + "1" * 5000 + "]}"]
)
def test_json_that_is_no_coco_is_refused_or_counted(make, content):
    with pytest.raises(UserError, match="JSON|COCO annotation|holds no images|cannot be used"):
        make({"instances_train.json": content}, TRAIN)


def test_a_folder_without_annotations_says_what_they_are(make):
    with pytest.raises(UserError, match="captions_train2017.json"):
        make({}, TRAIN)


def test_missing_captions_are_explained(make):
    with pytest.raises(UserError, match=r"no captions_\*.json"):
        make({"instances_train2017.json": instances()}, TRAIN).captions()


@pytest.mark.skipif(not (DATA / "boxes_bccd").exists(), reason=f"needs {DATA}/boxes_bccd (LATENTDIFF_DATA)")
def test_real_boxes_are_those_of_the_metadata_beside_them():
    for split in ("train", "val", "test"):
        options = {"path": str(DATA / "boxes_bccd"), "size": 32}
        coco, folder = FolderDataset(CocoConfig(**options), split), FolderDataset(FolderConfig(**options), split)
        assert coco.ids == folder.ids and coco.category_names == ["RBC", "WBC", "Platelets"] and not coco.unreadable
        assert coco.fingerprint() == folder.fingerprint()
        for i in range(len(coco)):
            mine, theirs = (data.record(i, 0)["objects"] for data in (coco, folder))
            pairs = [sorted(zip(objects["bbox"], objects["categories"])) for objects in (mine, theirs)]
            assert pairs[0] == pairs[1]
