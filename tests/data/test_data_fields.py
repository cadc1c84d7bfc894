"""Boxes and maps follow crop and flip; fields that are computed from the image depend on the key."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from latentdiff.config import UserError
from latentdiff.data.degrade import DegradeConfig
from latentdiff.data.fields import (
    ConditionFields,
    check_classes,
    crop_boxes,
    crop_map,
    needs_image,
    open_map,
    stack_field,
)
from latentdiff.data.folder import FolderConfig, FolderDataset
from latentdiff.data.image import BadImage, CropParams, resize_and_crop
from latentdiff.data.masks import MasksConfig
from latentdiff.data.shapes.dataset import ShapesConfig, ShapesDataset


def scene():
    """An image, its class map and its boxes: a red and a green block on black, 96 x 64."""
    image, class_map = np.zeros((64, 96, 3), np.uint8), np.zeros((64, 96), np.uint8)
    for kind, (x, y, width, height), colour in ((1, (8, 16, 20, 24), (255, 0, 0)), (2, (60, 8, 24, 12), (0, 255, 0))):
        image[y : y + height, x : x + width], class_map[y : y + height, x : x + width] = colour, kind
    return Image.fromarray(image), Image.fromarray(class_map), {"bbox": [[8, 16, 20, 24], [60, 8, 24, 12]],
                                                            "categories": [1, 2]}  # fmt: skip


@pytest.mark.parametrize("crop", ["center", "random"])
@pytest.mark.parametrize("key", range(6))
def test_boxes_and_maps_follow_the_crop_and_flip_of_the_image(crop, key, tmp_path):
    source, class_map, objects = scene()
    class_map.save(tmp_path / "map.png")
    image, view = resize_and_crop(source, 32, 32, crop, key, flip=True)
    segmentation, boxes = crop_map(tmp_path / "map.png", view), crop_boxes(objects, view)
    assert segmentation.shape == (32, 32)
    for kind, channel in ((1, 0), (2, 1)):
        in_image, in_map = image[:, :, channel] > 128, segmentation == kind
        assert (in_image != in_map).mean() < 0.05
        if not in_map.any():
            continue
        y, x = np.nonzero(in_map)
        boxes_of_kind = [box for box in boxes if box[4] == kind]
        if boxes_of_kind:
            expected = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]) / 32
            assert np.abs(boxes_of_kind[0][:4] - expected).max() <= 1.5 / 32


def test_a_flip_mirrors_boxes_and_a_crop_clips_or_drops_them():
    objects = {"bbox": [[2, 2, 4, 4], [14, 0, 6, 6], [30, 0, 4, 4]], "categories": [0, 1, 2]}
    view = CropParams(1.0, 0, 0, 16, 16, True)
    boxes = crop_boxes(objects, view)
    assert boxes.tolist() == [[10 / 16, 2 / 16, 14 / 16, 6 / 16, 0], [0, 0, 2 / 16, 6 / 16, 1]]  # the largest first
    assert crop_boxes({"bbox": [], "categories": []}, view).shape == (0, 5)


@pytest.mark.parametrize("objects", [{"bbox": [[1, 2, 3]], "categories": [0]}, {"bbox": [[1, 2, 3, 4]]}, [],
                                     {"bbox": [[1, 2, 3, "x"]], "categories": [0]}])  # fmt: skip
def test_objects_that_cannot_be_read_raise_bad_image(objects):
    with pytest.raises(BadImage, match="its objects cannot be read"):
        crop_boxes(objects, CropParams(1.0, 0, 0, 16, 16, False))


def test_gray_and_palette_maps_are_read_as_class_numbers(tmp_path):
    class_map = np.array([[0, 1], [2, 5]], np.uint8)
    Image.fromarray(class_map).save(tmp_path / "gray.png")
    palette = Image.fromarray(class_map, mode="P")
    palette.putpalette([10 * i % 256 for i in range(768)])
    palette.save(tmp_path / "palette.png")
    Image.fromarray(class_map.astype(np.uint16) + 300).save(tmp_path / "deep.png")
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "colour.png")
    assert np.array_equal(np.asarray(open_map(tmp_path / "gray.png")), class_map)
    assert np.array_equal(np.asarray(open_map(tmp_path / "palette.png")), class_map)
    assert np.array_equal(np.asarray(open_map(tmp_path / "deep.png")), class_map.astype(int) + 300)
    for name, reason in (("colour.png", "it must be gray"), ("none.png", "cannot be read")):
        with pytest.raises(BadImage, match=reason):
            open_map(tmp_path / name)


def test_a_class_out_of_range_raises_bad_image():
    with pytest.raises(BadImage, match="its segmentation has class 6; the condition's classes=6 allows 0 to 5"):
        check_classes("segmentation", np.array([[0, 6]]), 6)
    with pytest.raises(BadImage, match="class 3"):
        check_classes("boxes", np.array([[0, 0, 1, 1, 3.0]]), 3)
    check_classes("boxes", np.zeros((0, 5)), 3)
    check_classes("label", 2, 3)


def test_only_derived_fields_depend_on_the_key():
    data = ConditionFields(ShapesDataset(ShapesConfig()), ("image", "mask", "low_res", "boxes", "segmentation"),
                  (MasksConfig(), DegradeConfig(4, "bsr")), {"boxes": 6})  # fmt: skip
    a, b, again = data.item(3, 10), data.item(3, 12), data.item(3, 10)
    for name in ("mask", "low_res"):
        assert np.array_equal(a[name], again[name]) and not np.array_equal(a[name], b[name])
    for name in ("image", "boxes", "segmentation"):
        assert np.array_equal(a[name], b[name])


def test_the_error_for_a_missing_field_names_the_required_metadata():
    class Images:
        def item(self, i, key):
            return {"id": "a", "image": np.zeros((8, 8, 3), np.uint8)}

    with pytest.raises(UserError, match="segmentation, which the data does not have; each image needs map_file_name"):
        ConditionFields(Images(), ("segmentation",), (), {}).item(0, 0)


def test_images_are_read_beside_cached_latents_only_if_a_field_needs_them():
    record = ShapesDataset(ShapesConfig()).record(0, 0)
    assert not needs_image(("caption",), record) and not needs_image(("label", "boxes"), record)
    assert needs_image(("segmentation",), record) and needs_image(("image", "mask"), record)


def test_boxes_of_several_images_are_padded_with_class_minus_one():
    boxes = stack_field("boxes", [np.ones((2, 5), np.float32), np.zeros((0, 5), np.float32)])
    assert boxes.shape == (2, 2, 5) and boxes[0].min() == 1 and (boxes[1] == -1).all()
    assert stack_field("boxes", [np.zeros((0, 5))] * 2).tolist() == [[[-1.0] * 5]] * 2
    assert torch.equal(stack_field("label", torch.arange(3)), torch.arange(3))


def test_metadata_columns_with_reserved_names_are_not_used_as_fields(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    entry = {"file_name": "a.png", "segmentation": "a-map.png", "boxes": [1], "mask": "m.png", "low_res": "l.png"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(entry) + "\n")
    data = FolderDataset(FolderConfig(str(tmp_path), size=8, val_fraction=0.0), "train")
    assert needs_image(("segmentation",), data.record(0, 0))
    with pytest.raises(UserError, match="segmentation, which the data does not have; each image needs map_file_name"):
        ConditionFields(data, ("segmentation",), (), {"segmentation": 3}).item(0, 0)
    with pytest.raises(UserError, match="caption, which the data does not have; each image needs a text"):
        ConditionFields(data, ("caption",), (), {}).item(0, 0)
