"""Image folders of every layout: items, captions, labels and splits, and clear errors."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentdiff.config import UserError
from latentdiff.data.folder import FolderConfig, FolderDataset
from latentdiff.data.image import BadImage

DATA = Path(os.environ.get("LATENTDIFF_DATA", "data"))


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., FolderDataset]:
    """make_dataset({name: content}, split, field=value): a dataset in a temporary folder; None as content: an image."""

    def write(name: str, content: object) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            color = tuple(name.encode()[-7:-4])  # depends on the name
            Image.new("RGB", (12, 8), color).save(path, "PNG")
        elif isinstance(content, list):
            lines = [line if isinstance(line, str) else json.dumps(line) for line in content]
            path.write_text("".join(line + "\n" for line in lines))
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())

    def make_dataset(files: dict[str, object], split: str = "train", **options) -> FolderDataset:
        for name, content in files.items():
            write(name, content)
        return FolderDataset(FolderConfig(**{"path": str(tmp_path), "size": 8, "val_fraction": 0.0} | options), split)

    return make_dataset


def records(data: FolderDataset) -> list[dict]:
    return [data.record(i, 0) for i in range(len(data))]


def test_images_of_any_extension_are_sorted_and_have_no_caption(make_dataset):
    data = make_dataset(
        {"b.png": None, "A.JPG": None, "sub/c.WebP": None, ".hidden.png": None, "notes.md": "x", "a.pdf": "x"}
    )
    assert [data.id(i) for i in range(len(data))] == ["A.JPG", "b.png", "sub/c.WebP"]
    assert records(data)[0] == {"id": "A.JPG"}
    item = data.item(1, 5)
    assert set(item) == {"id", "image", "view"}
    assert item["image"].shape == (8, 8, 3) and item["image"].dtype == np.uint8
    assert not data.has_captions and data.label_names == [] and data.unreadable == []


def test_class_sub_folders_give_labels_and_captions(make_dataset):
    files = {"tabby_cat/1.png": None, "dog/1.png": None, "dog/deep/2.png": None}
    data = make_dataset(files)
    assert data.label_names == ["dog", "tabby_cat"]
    assert [(r["label"], r["caption"]) for r in records(data)] == [(0, "dog"), (0, "dog"), (1, "tabby cat")]
    assert make_dataset({"loose.png": None}).label_names == []  # an image beside the folders: they are not classes


def test_a_file_without_an_extension_is_an_image_if_its_content_is(make_dataset):
    data = make_dataset({"no_extension": None, "LICENSE": "not an image", "b.png": None})
    assert data.ids == ["b.png", "no_extension"] and data.item(1, 0)["image"].shape == (8, 8, 3)


def test_a_single_sub_folder_is_not_a_class(make_dataset):
    assert records(make_dataset({"images/1.png": None, "images/2.png": None}))[0] == {"id": "images/1.png"}


def test_text_files_beside_images_are_captions_one_per_line(make_dataset):
    data = make_dataset(
        {"a.png": None, "a.txt": "a red cat\n\n a cat \n", "b.png": None, "README.txt": "not a caption"}
    )
    assert {data.record(0, key)["caption"] for key in range(20)} == {"a red cat", "a cat"}
    assert data.record(0, 3) == data.record(0, 3)
    assert data.record(1, 0)["caption"] == ""  # no text file, while other images have one
    assert data.captions() == ["a red cat", "a cat"]


def test_text_files_override_class_names_as_captions_and_keep_the_labels(make_dataset):
    data = make_dataset({"cat/1.png": None, "cat/1.txt": "a tom", "dog/1.png": None, "dog/1.txt": "a hound"})
    assert [(r["label"], r["caption"]) for r in records(data)] == [(0, "a tom"), (1, "a hound")]


def test_a_jsonl_table_gives_captions_labels_and_other_columns(make_dataset):
    entries = [
        {"file_name": "./b.png", "text": ["two", "zwei"], "label": "dog", "label_id": 1, "areas": [[0, 0, 1, 1]]},
        {"file_name": "a.png", "text": "one", "label": "cat", "label_id": 0, "score": 0.5},
    ]
    data = make_dataset({"a.png": None, "b.png": None, "extra.png": None, "metadata.jsonl": entries})
    assert records(data)[0] == {"id": "a.png", "label": 0, "label_id": 0, "score": 0.5, "caption": "one"}
    assert data.record(1, 0)["areas"] == [[0, 0, 1, 1]]
    assert {data.record(1, key)["caption"] for key in range(20)} == {"two", "zwei"}
    assert data.captions() == ["one", "two", "zwei"]
    assert data.label_names == ["cat", "dog"]
    assert data.unlisted == ["extra.png"]


def test_a_csv_table_gives_captions_labels_and_other_columns(make_dataset):
    table = '\ufefffile_name,text,label_id,note\r\na.png,"one, with a comma",1,\r\nb.png,two,0,x\r\n'
    data = make_dataset({"a.png": None, "b.png": None, "metadata.csv": table})
    first = {"id": "a.png", "label": 1, "label_id": "1", "caption": "one, with a comma"}
    assert records(data) == [first, {"id": "b.png", "label": 0, "label_id": "0", "note": "x", "caption": "two"}]


def test_map_file_name_becomes_a_path_and_must_be_inside_the_folder(make_dataset, tmp_path):
    entries = [{"file_name": "a.png", "map_file_name": "maps/a.png"}]
    entries += [{"file_name": "b.png", "map_file_name": name} for name in ("../../etc/passwd",)]
    data = make_dataset({"a.png": None, "b.png": None, "maps/a.png": None, "metadata.jsonl": entries})
    assert data.record(0, 0)["map_file_name"] == str(tmp_path / "maps/a.png")
    assert data.unlisted == []  # a map needs no entry in the table
    with pytest.raises(BadImage, match="outside of the folder"):
        data.record(1, 0)


def test_columns_with_reserved_names_are_ignored(make_dataset):
    entries = [{"file_name": "a.png", "text": "x", "image": 1, "bad": 2, "key": 3, "tokens": 4, "id": 5, "score": 6}]
    data = make_dataset({"a.png": None, "metadata.jsonl": entries})
    assert records(data) == [{"id": "a.png", "score": 6, "caption": "x"}]


def test_the_caption_column_can_be_chosen(make_dataset):
    entries = [{"file_name": "a.png", "text": "short", "text_long": "long", "caption": "other"}]
    files = {"a.png": None, "metadata.jsonl": entries}
    assert records(make_dataset(files, caption="text_long")) == [{"id": "a.png", "text": "short", "caption": "long"}]
    assert records(make_dataset(files))[0]["caption"] == "short"


def test_several_entries_of_one_image_are_several_captions(make_dataset):
    entries = [{"file_name": "a.png", "text": text} for text in ("one", "two")]
    data = make_dataset({"a.png": None, "metadata.jsonl": entries})
    assert len(data) == 1 and data.captions() == ["one", "two"]


def test_label_names_have_the_same_numbers_in_every_split(make_dataset):
    files = {f"{split}/{name}.png": None for split in ("train", "val") for name in "abc"}
    for split, labels in (("train", ["cat", "dog", "eel"]), ("val", ["dog", "eel", "dog"])):
        entries = [{"file_name": f"{name}.png", "label": label} for name, label in zip("abc", labels)]
        files[f"{split}/metadata.jsonl"] = entries
    assert [r["label"] for r in records(make_dataset(files))] == [0, 1, 2]
    val = make_dataset(files, "val")
    assert [r["label"] for r in records(val)] == [1, 2, 1] and val.label_names == ["cat", "dog", "eel"]


def test_labels_are_ignored_unless_all_images_have_one(make_dataset):
    entries = [{"file_name": "a.png", "label": "cat"}, {"file_name": "b.png"}]
    data = make_dataset({"a.png": None, "b.png": None, "metadata.jsonl": entries})
    assert records(data) == [{"id": "a.png"}, {"id": "b.png"}] and data.label_names == []


def test_split_folders_define_the_splits(make_dataset):
    files = {"train/a.png": None, "validation/b.png": None, "test/c.png": None, "loose.png": None}
    assert [make_dataset(files, split).ids for split in ("train", "val", "test")] == [
        ["train/a.png"],
        ["validation/b.png"],
        ["test/c.png"],
    ]


def test_a_val_folder_beside_training_images_is_held_out(make_dataset):
    files = {"a.png": None, "val/b.png": None, "valley/c.png": None}
    assert make_dataset(files).ids == ["a.png", "valley/c.png"]
    assert make_dataset(files, "val").ids == ["val/b.png"]


def test_one_table_above_the_split_folders_applies_to_all_of_them(make_dataset):
    entries = [{"file_name": f"{name}.png", "text": name} for name in ("train/a", "val/b")]
    files = {"train/a.png": None, "val/b.png": None, "metadata.jsonl": entries}
    for split, caption in (("train", "train/a"), ("val", "val/b")):
        data = make_dataset(files, split)
        assert [r["caption"] for r in records(data)] == [caption] and data.unreadable == []


def test_without_a_val_folder_a_hash_selects_held_out_images_that_stay_when_files_are_added(make_dataset):
    files = {f"{i:03}.png": b"" for i in range(300)}
    train, val = (make_dataset(files, split, val_fraction=0.1).ids for split in ("train", "val"))
    assert sorted(train + val) == sorted(files) and 15 < len(val) < 50
    val_after = make_dataset({f"new{i}.png": b"" for i in range(50)}, "val", val_fraction=0.1).ids
    assert [id for id in val_after if not id.startswith("new")] == val


def test_at_least_one_image_of_a_small_folder_is_held_out(make_dataset):
    files = {f"{i}.png": b"" for i in range(3)}
    train, val = (make_dataset(files, split, val_fraction=0.001) for split in ("train", "val"))
    assert len(val) == 1 and len(train) == 2
    assert len(make_dataset(files, "val")) == 0  # val_fraction = 0


def test_an_item_is_a_function_of_its_key(make_dataset):
    pixels = np.arange(8 * 12 * 3, dtype=np.uint8).reshape(8, 12, 3)
    data = make_dataset({"a.png": None}, crop="random", flip=True)
    Image.fromarray(pixels).save(data.file(0))
    copy = pickle.loads(pickle.dumps(data))  # as in a worker process
    images = []
    for key in range(60):
        item = data.item(0, key)
        assert np.array_equal(item["image"], copy.item(0, key)["image"])
        crop = pixels[:, item["view"].left : item["view"].left + 8]
        assert np.array_equal(item["image"], crop[:, ::-1] if item["view"].flip else crop)
        images.append(item["image"].tobytes())
    assert len(set(images)) == 10  # five crops, flipped or not


def test_width_may_differ_from_height(make_dataset):
    assert make_dataset({"a.png": None}, size=4, width=12).item(0, 0)["image"].shape == (4, 12, 3)


def test_the_fingerprint_depends_on_pixels_and_preprocessing_but_not_on_captions(make_dataset, tmp_path):
    files = {"a.png": None, "a.txt": "one"}
    first = make_dataset(files).fingerprint()
    assert make_dataset(files | {"a.txt": "two"}).fingerprint() == first
    changed = [
        make_dataset(files, size=4),
        make_dataset(files, crop="random"),
        make_dataset(files, flip=True),
        make_dataset({"b.png": None}),
    ]
    assert len({first, *(data.fingerprint() for data in changed)}) == 5
    before = make_dataset({}).fingerprint()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 12, 3), np.uint8)).save(tmp_path / "a.png")
    assert make_dataset({}).fingerprint() != before


def test_a_bad_image_raises_its_reason_and_invalid_entries_are_listed(make_dataset):
    entries = ["{", [1], {"text": "x"}, {"file_name": "gone.png"}, {"file_name": "../../etc/passwd"}]
    entries += [{"file_name": "a.png", "text": "one"}, "", {"file_name": "bad.png", "text": "two"}]
    data = make_dataset({"a.png": None, "bad.png": "not an image", "metadata.jsonl": entries}, max_bad_fraction=0.8)
    with pytest.raises(BadImage, match="not an image"):
        data.item(1, 0)
    reasons = dict(data.unreadable)
    assert list(reasons) == ["metadata.jsonl:1", "metadata.jsonl:2", "metadata.jsonl:3", *list(reasons)[3:]]
    assert "not valid JSON" in reasons["metadata.jsonl:1"] and "its columns are text" in reasons["metadata.jsonl:3"]
    assert "metadata.jsonl:4 names it" in reasons["gone.png"] and "../../etc/passwd" in reasons
    assert len(reasons) == 5


def test_too_many_invalid_entries_raise_an_error_that_lists_them(make_dataset):
    entries = [{"file_name": "a.png"}, {"file_name": "gone.png"}]
    with pytest.raises(UserError, match=r"1 of 2 images .*max_bad_fraction = 0.05.*\n  gone.png: metadata.jsonl:2"):
        make_dataset({"a.png": None, "metadata.jsonl": entries})


@pytest.mark.parametrize(
    "files, message",
    [
        ({}, r"metadata\.jsonl or metadata\.csv \(file_name, text\), or x\.txt"),
        ({"metadata.json": "[]"}, r"metadata\.json is not read"),
        ({"Metadata.jsonl": "{}"}, r"Metadata\.jsonl is not read"),
        ({"metadata.jsonl.txt": "{}", "a.csv": ""}, r"metadata\.jsonl\.txt, a\.csv is not read"),
        ({"metadata.csv": "file_name,Text,label\na.png,one,x"}, "no column 'text' .* columns are Text, label"),
    ],
)
def test_the_error_for_missing_captions_names_the_reason(make_dataset, files, message):
    data = make_dataset({"a.png": None} | files)
    with pytest.raises(UserError, match=message):
        data.captions()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"crop": "middle"}, "data.crop is 'middle'; it must be center or random"),
        ({"size": 0}, "data.size=0"),
        ({"val_fraction": 2.0}, "data.val_fraction is 2.0"),
        ({"path": "/no/such/folder"}, "data.path='/no/such/folder' does not exist"),
        ({"path": __file__}, "is a file, not a folder"),
    ],
)
def test_invalid_settings_are_refused_by_name(make_dataset, options, message):
    with pytest.raises(UserError, match=message):
        make_dataset({"a.png": None}, **options)


def test_the_error_for_a_folder_without_images_lists_its_content(make_dataset):
    with pytest.raises(UserError, match=r"holds no images to train on; it holds a\.zip, notes"):
        make_dataset({"a.zip": "", "notes/x.md": ""})
    with pytest.raises(UserError, match=r"no images to test on \(in .*/test\)"):
        make_dataset({"a.png": None}, "test")


def test_links_are_followed_unless_they_form_a_cycle(make_dataset, tmp_path):
    make_dataset({"in/a.png": None, "in/sub/b.png": None})
    (tmp_path / "in/sub/up").symlink_to(tmp_path)
    linked = tmp_path.with_name(tmp_path.name + "-linked")
    shutil.copytree(tmp_path / "in", linked, ignore=shutil.ignore_patterns("up"))
    (tmp_path / "other").symlink_to(linked)
    assert make_dataset({}).ids == ["in/a.png", "in/sub/b.png", "other/a.png", "other/sub/b.png"]


def test_unicode_names_invalid_utf8_names_and_broken_links_are_listed(make_dataset, tmp_path):
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    data = make_dataset({"ünï 猫 'q'.png": None, "b\udcff.png": b"no utf-8"})
    assert len(data) == 3 and len(data.fingerprint()) == 32
    with pytest.raises(BadImage, match="No such file"):
        data.item(data.ids.index("link.png"), 0)


@pytest.mark.slow
def test_real_folders_have_the_documented_sizes_and_labels():
    if not (DATA / "emoji").exists():
        pytest.skip(f"needs {DATA}/emoji (LATENTDIFF_DATA)")
    emoji = {
        split: FolderDataset(FolderConfig(str(DATA / "emoji"), size=64), split) for split in ("train", "val", "test")
    }
    assert [len(data) for data in emoji.values()] == [6898, 433, 369]
    assert len(emoji["train"].label_names) == 9 and emoji["train"].label_names[8] == "Flags"
    assert len(set(emoji["train"].captions())) == 6898
    stored = np.array(Image.open(emoji["val"].file(7)))
    assert np.array_equal(emoji["val"].item(7, 0)["image"], stored)  # 64 x 64 already
    trash = FolderDataset(FolderConfig(str(DATA / "photos/trashnet"), size=32), "train")
    assert trash.label_names == ["cardboard", "glass", "metal", "paper", "plastic", "trash"]
    aerial = FolderDataset(FolderConfig(str(DATA / "seg_aerial"), size=32), "val")
    assert len(aerial) == 196 and Path(aerial.record(0, 0)["map_file_name"]).exists()


def test_a_moved_folder_keeps_its_fingerprint(make_dataset, tmp_path):
    before = make_dataset({"images/a.png": None}).fingerprint()
    moved = tmp_path.with_name(tmp_path.name + "-moved")
    shutil.copytree(tmp_path, moved)
    assert make_dataset({}, path=str(moved)).fingerprint() == before
