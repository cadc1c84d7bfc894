"""Folders of every layout give the same items in the same order, and say in words what is wrong with them."""

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
def make(tmp_path: Path) -> Callable[..., FolderDataset]:
    """make({name: content}, split, field=value): the data set of a folder of its own."""

    def write(name: str, content: object) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            color = tuple(name.encode()[-7:-4])  # each image has its own
            Image.new("RGB", (12, 8), color).save(path, "PNG")
        elif isinstance(content, list):
            path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in content))
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())

    def make(files: dict[str, object], split: str = "train", **options) -> FolderDataset:
        for name, content in files.items():
            write(name, content)
        return FolderDataset(FolderConfig(**{"path": str(tmp_path), "size": 8, "val_fraction": 0.0} | options), split)

    return make


def records(data: FolderDataset) -> list[dict]:
    return [data.record(i, 0) for i in range(len(data))]


def test_plain_images_of_any_extension_are_sorted_and_have_no_caption(make):
    data = make({"b.png": None, "A.JPG": None, "sub/c.WebP": None, ".hidden.png": None, "notes.md": "x", "a.pdf": "x"})
    assert [data.id(i) for i in range(len(data))] == ["A.JPG", "b.png", "sub/c.WebP"]
    assert records(data)[0] == {"id": "A.JPG"}
    item = data.item(1, 5)
    assert set(item) == {"id", "image", "view"}
    assert item["image"].shape == (8, 8, 3) and item["image"].dtype == np.uint8
    assert not data.has_captions and data.label_names == [] and data.unreadable == []


def test_class_sub_folders_give_labels_and_captions(make):
    files = {"tabby_cat/1.png": None, "dog/1.png": None, "dog/deep/2.png": None}
    data = make(files)
    assert data.label_names == ["dog", "tabby_cat"]
    assert [(r["label"], r["caption"]) for r in records(data)] == [(0, "dog"), (0, "dog"), (1, "tabby cat")]
    assert make({"loose.png": None}).label_names == []  # a image beside them: they are no classes


def test_a_file_without_an_extension_is_taken_by_its_content(make):
    data = make({"no_extension": None, "LICENSE": "not an image", "b.png": None})
    assert data.ids == ["b.png", "no_extension"] and data.item(1, 0)["image"].shape == (8, 8, 3)


def test_one_sub_folder_is_no_class(make):
    assert records(make({"images/1.png": None, "images/2.png": None}))[0] == {"id": "images/1.png"}


def test_text_files_beside_images_are_captions_one_per_line(make):
    data = make({"a.png": None, "a.txt": "a red cat\n\n a cat \n", "b.png": None, "README.txt": "not a caption"})
    assert {data.record(0, key)["caption"] for key in range(20)} == {"a red cat", "a cat"}
    assert data.record(0, 3) == data.record(0, 3)
    assert data.record(1, 0)["caption"] == ""  # says nothing, and others say something
    assert data.captions() == ["a red cat", "a cat"]


def test_text_files_win_over_class_names_and_keep_the_labels(make):
    data = make({"cat/1.png": None, "cat/1.txt": "a tom", "dog/1.png": None, "dog/1.txt": "a hound"})
    assert [(r["label"], r["caption"]) for r in records(data)] == [(0, "a tom"), (1, "a hound")]


def test_metadata_lines_give_captions_labels_and_keep_other_columns(make):
    rows = [
        {"file_name": "./b.png", "text": ["two", "zwei"], "label": "dog", "label_id": 1, "areas": [[0, 0, 1, 1]]},
        {"file_name": "a.png", "text": "one", "label": "cat", "label_id": 0, "score": 0.5},
    ]
    data = make({"a.png": None, "b.png": None, "extra.png": None, "metadata.jsonl": rows})
    assert records(data)[0] == {"id": "a.png", "label": 0, "label_id": 0, "score": 0.5, "caption": "one"}
    assert data.record(1, 0)["areas"] == [[0, 0, 1, 1]]
    assert {data.record(1, key)["caption"] for key in range(20)} == {"two", "zwei"}
    assert data.captions() == ["one", "two", "zwei"]
    assert data.label_names == ["cat", "dog"]
    assert data.unlisted == ["extra.png"]


def test_a_metadata_table_in_csv_says_the_same(make):
    table = '\ufefffile_name,text,label_id,note\r\na.png,"one, with a comma",1,\r\nb.png,two,0,x\r\n'
    data = make({"a.png": None, "b.png": None, "metadata.csv": table})
    first = {"id": "a.png", "label": 1, "label_id": "1", "caption": "one, with a comma"}
    assert records(data) == [first, {"id": "b.png", "label": 0, "label_id": "0", "note": "x", "caption": "two"}]


def test_a_map_is_named_by_its_path_and_never_leads_out_of_the_folder(make, tmp_path):
    rows = [{"file_name": "a.png", "map_file_name": "maps/a.png"}]
    rows += [{"file_name": "b.png", "map_file_name": name} for name in ("../../etc/passwd",)]
    data = make({"a.png": None, "b.png": None, "maps/a.png": None, "metadata.jsonl": rows})
    assert data.record(0, 0)["map_file_name"] == str(tmp_path / "maps/a.png")
    assert data.unlisted == []  # a map is no image without a row
    with pytest.raises(BadImage, match="outside of the folder"):
        data.record(1, 0)


def test_a_column_cannot_take_the_place_of_what_the_loader_adds(make):
    rows = [{"file_name": "a.png", "text": "x", "image": 1, "bad": 2, "key": 3, "tokens": 4, "id": 5, "score": 6}]
    assert records(make({"a.png": None, "metadata.jsonl": rows})) == [{"id": "a.png", "score": 6, "caption": "x"}]


def test_another_column_may_hold_the_captions(make):
    rows = [{"file_name": "a.png", "text": "short", "text_long": "long", "caption": "other"}]
    files = {"a.png": None, "metadata.jsonl": rows}
    assert records(make(files, caption="text_long")) == [{"id": "a.png", "text": "short", "caption": "long"}]
    assert records(make(files))[0]["caption"] == "short"


def test_several_rows_of_one_image_are_several_captions(make):
    rows = [{"file_name": "a.png", "text": text} for text in ("one", "two")]
    data = make({"a.png": None, "metadata.jsonl": rows})
    assert len(data) == 1 and data.captions() == ["one", "two"]


def test_labels_in_words_have_the_same_numbers_in_every_split(make):
    files = {f"{split}/{name}.png": None for split in ("train", "val") for name in "abc"}
    for split, words in (("train", ["cat", "dog", "eel"]), ("val", ["dog", "eel", "dog"])):
        rows = [{"file_name": f"{name}.png", "label": word} for name, word in zip("abc", words)]
        files[f"{split}/metadata.jsonl"] = rows
    assert [r["label"] for r in records(make(files))] == [0, 1, 2]
    val = make(files, "val")
    assert [r["label"] for r in records(val)] == [1, 2, 1] and val.label_names == ["cat", "dog", "eel"]


def test_labels_that_only_some_images_have_are_none(make):
    rows = [{"file_name": "a.png", "label": "cat"}, {"file_name": "b.png"}]
    data = make({"a.png": None, "b.png": None, "metadata.jsonl": rows})
    assert records(data) == [{"id": "a.png"}, {"id": "b.png"}] and data.label_names == []


def test_split_folders_are_the_splits(make):
    files = {"train/a.png": None, "validation/b.png": None, "test/c.png": None, "loose.png": None}
    assert [make(files, split).ids for split in ("train", "val", "test")] == [
        ["train/a.png"],
        ["validation/b.png"],
        ["test/c.png"],
    ]


def test_a_val_folder_inside_the_images_is_held_out(make):
    files = {"a.png": None, "val/b.png": None, "valley/c.png": None}
    assert make(files).ids == ["a.png", "valley/c.png"]
    assert make(files, "val").ids == ["val/b.png"]


def test_one_table_above_the_split_folders_serves_them_all(make):
    rows = [{"file_name": f"{name}.png", "text": name} for name in ("train/a", "val/b")]
    files = {"train/a.png": None, "val/b.png": None, "metadata.jsonl": rows}
    for split, caption in (("train", "train/a"), ("val", "val/b")):
        data = make(files, split)
        assert [r["caption"] for r in records(data)] == [caption] and data.unreadable == []


def test_without_a_val_folder_a_share_is_held_out_by_hash_and_stays_when_files_come(make):
    files = {f"{i:03}.png": b"" for i in range(300)}
    train, val = (make(files, split, val_fraction=0.1).ids for split in ("train", "val"))
    assert sorted(train + val) == sorted(files) and 15 < len(val) < 50
    more = make({f"new{i}.png": b"" for i in range(50)}, "val", val_fraction=0.1).ids
    assert [id for id in more if not id.startswith("new")] == val


def test_a_small_folder_still_holds_one_image_out(make):
    files = {f"{i}.png": b"" for i in range(3)}
    assert len(make(files, "val", val_fraction=0.001)) == 1 and len(make(files, val_fraction=0.001)) == 2
    assert len(make(files, "val")) == 0  # val_fraction = 0


def test_an_item_is_a_function_of_its_key(make):
    pixels = np.arange(8 * 12 * 3, dtype=np.uint8).reshape(8, 12, 3)
    data = make({"a.png": None}, crop="random", flip=True)
    Image.fromarray(pixels).save(data.file(0))
    again = pickle.loads(pickle.dumps(data))  # as a worker gets it
    images = []
    for key in range(60):
        item = data.item(0, key)
        assert np.array_equal(item["image"], again.item(0, key)["image"])
        crop = pixels[:, item["view"].left : item["view"].left + 8]
        assert np.array_equal(item["image"], crop[:, ::-1] if item["view"].flip else crop)
        images.append(item["image"].tobytes())
    assert len(set(images)) == 10  # five places, mirrored or not


def test_width_may_differ_from_height(make):
    assert make({"a.png": None}, size=4, width=12).item(0, 0)["image"].shape == (4, 12, 3)


def test_the_fingerprint_follows_pixels_and_preprocessing_but_not_captions(make, tmp_path):
    files = {"a.png": None, "a.txt": "one"}
    first = make(files).fingerprint()
    assert make(files | {"a.txt": "two"}).fingerprint() == first
    others = [make(files, size=4), make(files, crop="random"), make(files, flip=True), make({"b.png": None})]
    assert len({first, *(data.fingerprint() for data in others)}) == 5
    before = make({}).fingerprint()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 12, 3), np.uint8)).save(tmp_path / "a.png")
    assert make({}).fingerprint() != before


def test_a_bad_image_raises_its_reason_and_broken_rows_are_listed(make):
    rows = ["{", [1], {"text": "x"}, {"file_name": "gone.png"}, {"file_name": "../../etc/passwd"}]
    rows += [{"file_name": "a.png", "text": "one"}, "", {"file_name": "bad.png", "text": "two"}]
    data = make({"a.png": None, "bad.png": "not an image", "metadata.jsonl": rows}, max_bad_fraction=0.8)
    with pytest.raises(BadImage, match="not an image"):
        data.item(1, 0)
    reasons = dict(data.unreadable)
    assert list(reasons) == ["metadata.jsonl:1", "metadata.jsonl:2", "metadata.jsonl:3", *list(reasons)[3:]]
    assert "not valid JSON" in reasons["metadata.jsonl:1"] and "its columns are text" in reasons["metadata.jsonl:3"]
    assert "metadata.jsonl:4 names it" in reasons["gone.png"] and "../../etc/passwd" in reasons
    assert len(reasons) == 5


def test_too_many_bad_rows_stop_at_once_with_the_list(make):
    rows = [{"file_name": "a.png"}, {"file_name": "gone.png"}]
    with pytest.raises(UserError, match=r"1 of 2 images .*max_bad_fraction = 0.05.*\n  gone.png: metadata.jsonl:2"):
        make({"a.png": None, "metadata.jsonl": rows})


@pytest.mark.parametrize(
    "files, words",
    [
        ({}, r"metadata\.jsonl or metadata\.csv \(file_name, text\), or x\.txt"),
        ({"metadata.json": "[]"}, r"metadata\.json is not read"),
        ({"Metadata.jsonl": "{}"}, r"Metadata\.jsonl is not read"),
        ({"metadata.jsonl.txt": "{}", "a.csv": ""}, r"metadata\.jsonl\.txt, a\.csv is not read"),
        ({"metadata.csv": "file_name,Text,label\na.png,one,x"}, "no column 'text' .* columns are Text, label"),
    ],
)
def test_missing_captions_are_explained(make, files, words):
    data = make({"a.png": None} | files)
    with pytest.raises(UserError, match=words):
        data.captions()


@pytest.mark.parametrize(
    "options, words",
    [
        ({"crop": "middle"}, "data.crop is 'middle'; it must be center or random"),
        ({"size": 0}, "data.size=0"),
        ({"val_fraction": 2.0}, "data.val_fraction is 2.0"),
        ({"path": "/no/such/folder"}, "data.path='/no/such/folder' does not exist"),
        ({"path": __file__}, "is a file, not a folder"),
    ],
)
def test_wrong_fields_are_refused_by_name(make, options, words):
    with pytest.raises(UserError, match=words):
        make({"a.png": None}, **options)


def test_a_folder_without_images_says_what_it_holds(make):
    with pytest.raises(UserError, match=r"holds no images to train on; it holds a\.zip, notes"):
        make({"a.zip": "", "notes/x.md": ""})
    with pytest.raises(UserError, match=r"no images to test on \(in .*/test\)"):
        make({"a.png": None}, "test")


def test_links_are_followed_but_never_in_circles(make, tmp_path):
    make({"in/a.png": None, "in/sub/b.png": None})
    (tmp_path / "in/sub/up").symlink_to(tmp_path)
    elsewhere = tmp_path.with_name(tmp_path.name + "-elsewhere")
    shutil.copytree(tmp_path / "in", elsewhere, ignore=shutil.ignore_patterns("up"))
    (tmp_path / "other").symlink_to(elsewhere)
    assert make({}).ids == ["in/a.png", "in/sub/b.png", "other/a.png", "other/sub/b.png"]


def test_a_name_in_any_script_and_a_broken_link_do_no_harm(make, tmp_path):
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    data = make({"ünï 猫 'q'.png": None, "b\udcff.png": b"no utf-8"})
    assert len(data) == 3 and len(data.fingerprint()) == 32
    with pytest.raises(BadImage, match="No such file"):
        data.item(data.ids.index("link.png"), 0)


@pytest.mark.slow
def test_real_folders_are_read_as_their_readme_says():
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


def test_a_folder_that_is_moved_keeps_its_fingerprint(make, tmp_path):
    before = make({"images/a.png": None}).fingerprint()
    moved = tmp_path.with_name(tmp_path.name + "-moved")
    shutil.copytree(tmp_path, moved)
    assert make({}, path=str(moved)).fingerprint() == before
