"""COCO annotations give the same records as a metadata table, and invalid entries are listed with a reason."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from latentdiff.config import UserError
from latentdiff.data.coco import CocoConfig, CocoDataset
from latentdiff.data.folder import FolderConfig

DATA = Path(os.environ.get("LATENTDIFF_DATA", "data"))
CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., CocoDataset]:
    """make_dataset({file: annotations}, images, split, field=value): a dataset in a temporary folder."""

    def make_dataset(
        files: dict[str, object], images: tuple[str, ...] = (), split: str = "train", **options
    ) -> CocoDataset:
        for name in images:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (12, 8)).save(tmp_path / name)
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return CocoConfig(**{"path": str(tmp_path), "size": 8, "val_fraction": 0.0} | options).open(split)

    return make_dataset


def images(*names: str) -> list[dict]:
    return [{"id": 100 + i, "file_name": name, "width": 12, "height": 8} for i, name in enumerate(names)]


def instances(*boxes: tuple) -> dict:
    """An annotation file; boxes: (image index, bbox, category id)."""
    entries = [{"image_id": 100 + i, "bbox": box, "category_id": category} for i, box, category in boxes]
    return {"images": images("a.jpg", "b.jpg"), "annotations": entries, "categories": CATEGORIES}


TRAIN_IMAGES = ("train2017/a.jpg", "train2017/b.jpg")


def test_captions_and_boxes_of_an_image_are_joined(make_dataset):
    captions = {
        "images": images("a.jpg", "b.jpg"),
        "annotations": [{"image_id": 100, "caption": c} for c in ("one", "two ")],
    }
    files = {"annotations/captions_train2017.json": captions}
    files["annotations/instances_train2017.json"] = instances((0, [1, 2, 3, 4], 7), (0, [0, 0, 1.5, 1], 3))
    files["annotations/person_keypoints_train2017.json"] = instances((1, [0, 0, 1, 1], 7))  # not read
    files["annotations/captions_val2017.json"] = {"images": images("c.jpg"), "annotations": []}
    data = make_dataset(files, (*TRAIN_IMAGES, "val2017/c.jpg"))
    assert data.ids == list(TRAIN_IMAGES) and data.category_names == ["cat", "dog"] and data.unreadable == []
    assert {data.record(0, key)["caption"] for key in range(20)} == {"one", "two"}
    assert data.record(0, 0)["objects"] == {"bbox": [[1, 2, 3, 4], [0, 0, 1.5, 1]], "categories": [1, 0]}
    no_objects = {"bbox": [], "categories": []}
    assert data.record(1, 0) == {"id": TRAIN_IMAGES[1], "width": 12, "height": 8, "objects": no_objects, "caption": ""}
    assert data.item(0, 0)["image"].shape == (8, 8, 3)
    assert make_dataset({}, split="val").ids == ["val2017/c.jpg"]


def test_annotations_may_lie_beside_the_images(make_dataset):
    data = make_dataset(
        {"train/_annotations.coco.json": instances((1, [0, 0, 2, 2], 3))}, ("train/a.jpg", "train/b.jpg")
    )
    assert data.ids == ["train/a.jpg", "train/b.jpg"] and data.record(1, 0)["objects"]["categories"] == [0]


def test_crowd_annotations_are_ignored(make_dataset):
    annotations = instances((0, [0, 0, 1, 1], 3))
    annotations["annotations"][0]["iscrowd"] = 1
    assert make_dataset({"instances_train2017.json": annotations}, TRAIN_IMAGES).record(0, 0)["objects"]["bbox"] == []


def test_invalid_entries_are_listed_with_their_index(make_dataset):
    annotations = instances((0, [1, 2, 3], 3), (0, [0, 0, 1, 0], 3), (0, ["x", 0, 1, 1], 3), (0, [0, 0, 1, 1], 99))
    annotations["images"] += [
        {"id": 1},
        5,
        {"id": 2, "file_name": "../../etc/passwd"},
        {"id": [], "file_name": "a.jpg"},
    ]
    annotations["annotations"] += ["x", {"image_id": {}}, {"image_id": 5555, "bbox": 1}]
    data = make_dataset({"instances_train2017.json": annotations}, TRAIN_IMAGES, max_bad_fraction=1.0)
    assert len(data) == 2 and data.record(0, 0)["objects"]["bbox"] == []
    assert len(data.unreadable) == 4 + 4 + 2
    assert ("instances_train2017.json: images[2]", "needs an id and a file_name") in data.unreadable
    with pytest.raises(UserError, match="10 of 12 images cannot be used"):
        make_dataset({})


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"images": 3}', "[" * 3000, "\x00", '{"images": [' + "1" * 5000 + "]}"]
)
def test_json_that_is_not_a_coco_annotation_is_refused(make_dataset, content):
    with pytest.raises(UserError, match="JSON|COCO annotation|holds no images|cannot be used"):
        make_dataset({"instances_train.json": content}, TRAIN_IMAGES)


def test_the_error_for_a_folder_without_annotations_names_the_expected_files(make_dataset):
    with pytest.raises(UserError, match="captions_train2017.json"):
        make_dataset({}, TRAIN_IMAGES)


def test_the_error_for_missing_captions_names_the_missing_file(make_dataset):
    with pytest.raises(UserError, match=r"no captions_\*.json"):
        make_dataset({"instances_train2017.json": instances()}, TRAIN_IMAGES).captions()


@pytest.mark.skipif(not (DATA / "boxes_bccd").exists(), reason=f"needs {DATA}/boxes_bccd (LATENTDIFF_DATA)")
def test_real_coco_boxes_equal_those_of_the_metadata_table():
    for split in ("train", "val", "test"):
        options = {"path": str(DATA / "boxes_bccd"), "size": 32}
        coco, folder = CocoConfig(**options).open(split), FolderConfig(**options).open(split)
        assert coco.ids == folder.ids and coco.category_names == ["RBC", "WBC", "Platelets"] and not coco.unreadable
        assert coco.fingerprint() == folder.fingerprint()
        for i in range(len(coco)):
            objects = [data.record(i, 0)["objects"] for data in (coco, folder)]
            boxes = [sorted(zip(fields["bbox"], fields["categories"])) for fields in objects]
            assert boxes[0] == boxes[1]
