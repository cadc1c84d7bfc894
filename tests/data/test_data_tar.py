"""Tar shards give the same items as a folder, from any place, and nothing in them escapes or goes uncounted."""

import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentdiff.config import UserError
from latentdiff.data import tar_index, tar_shards
from latentdiff.data.folder import FolderConfig, FolderDataset
from latentdiff.data.image import BadImage
from latentdiff.data.tar import TarConfig, TarDataset

NASTY = Path(os.environ.get("LATENTDIFF_DATA", "data")) / "nasty"


def png(color: tuple[int, int, int] = (10, 20, 30), size: tuple[int, int] = (12, 8)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return file.getvalue()


def write(path: Path, members: dict[str, object]) -> None:
    """A tar of names -> bytes, text, None (a image of its own colour), a dict (JSON) or a TarInfo."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for i, (name, content) in enumerate(members.items()):
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
                continue
            content = png((i, i, i)) if content is None else content
            content = json.dumps(content) if isinstance(content, dict) else content
            content = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., TarDataset]:
    """make({shard: {member: content}}, split, field=value): the data set of a folder of shards of its own."""

    def make(files: dict[str, dict], split: str = "train", **options) -> TarDataset:
        for shard, members in files.items():
            write(tmp_path / "tars" / shard, members)
        options = {"path": str(tmp_path / "tars"), "size": 8, "val_fraction": 0.0} | options
        return TarDataset(TarConfig(**options), split)

    return make


def by_id(data: TarDataset) -> dict[str, dict]:
    return {data.id(i): data.record(i, 0) for i in range(len(data))}


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def test_img2dataset_shards_give_images_captions_and_columns(make):
    files = {"0.tar": {"0001.jpg": None, "0001.txt": "a cat\n", "0001.json": {"url": "x", "key": "0001", "width": 12}}}
    files["1.tar"] = {"0001.webp": None, "0001.txt": "a dog\na hound", "0002.PNG": None}
    data = make(files)
    records = by_id(data)
    assert sorted(records) == ["0.tar/0001.jpg", "1.tar/0001.webp", "1.tar/0002.PNG"]
    assert records["0.tar/0001.jpg"] == {"id": "0.tar/0001.jpg", "url": "x", "width": 12, "caption": "a cat"}
    assert records["1.tar/0002.PNG"]["caption"] == "" and data.unreadable == []
    assert sorted(data.captions()) == ["a cat", "a dog", "a hound"]
    item = data.item(0, 3)
    assert item["image"].shape == (8, 8, 3) and item["view"].height == 8


def test_a_tar_of_a_folder_gives_the_very_items_of_the_folder(make, tmp_path):
    colors = {f"{i:02d}.png": (i, 2 * i, 3 * i) for i in range(20)}
    write(tmp_path / "tars" / "all.tar", {name: png(color, (9 + color[0], 8)) for name, color in colors.items()})
    (tmp_path / "folder").mkdir()
    for name, color in colors.items():
        (tmp_path / "folder" / name).write_bytes(png(color, (9 + color[0], 8)))
    options = {"size": 8, "val_fraction": 0.0, "crop": "random", "flip": True}
    folder = FolderDataset(FolderConfig(str(tmp_path / "folder"), **options), "train")
    tars = pickle.loads(pickle.dumps(make({}, **options)))  # as a worker gets it
    places = {tars.id(i): i for i in range(len(tars))}
    for i in range(len(folder)):
        mine, theirs = tars.item(places[f"all.tar/{folder.id(i)}"], 77 + i), folder.item(i, 77 + i)
        assert np.array_equal(mine["image"], theirs["image"]) and mine["view"] == theirs["view"]


def test_captions_come_from_the_named_field_of_the_json_or_else_from_the_text(make):
    files = {"0.tar": {"a.png": None, "a.txt": "text", "a.json": {"caption": ["one", "two"], "label": 3}}}
    assert make(files).record(0, 0)["caption"] == "text"
    data = make(files, caption="caption")
    assert {data.record(0, key)["caption"] for key in range(20)} == {"one", "two"}
    assert data.record(0, 0)["label"] == 3
    with pytest.raises(UserError, match="no field 'text' .data.caption.; its fields are says"):
        make({"0.tar": {"a.png": None, "a.json": {"says": "x"}}}).captions()


def test_cls_members_are_labels(make):
    data = make({"0.tar": {"a.png": None, "a.cls": "4\n", "b.png": None, "b.cls": "0"}})
    assert {name: r["label"] for name, r in by_id(data).items()} == {"0.tar/a.png": 4, "0.tar/b.png": 0}
    assert data.label_names == ["0", "1", "2", "3", "4"]


def test_boxes_of_the_json_are_kept(make):
    objects = {"bbox": [[0, 0, 4, 4]], "categories": [1]}
    assert make({"0.tar": {"a.png": None, "a.json": {"objects": objects}}}).record(0, 0)["objects"] == objects


def test_a_member_without_extension_is_taken_by_its_content(make):
    data = make({"0.tar": {"dir/no_extension": None, "dir/README": "words", "b.png": None}})
    assert sorted(by_id(data)) == ["0.tar/b.png", "0.tar/dir/no_extension"]


def test_further_images_of_a_webdataset_sample_are_none_of_their_own(make):
    files = {"0.tar": {"a.jpg": None, "a.seg.png": None, "a.txt": "x", "b.jpg": None, "b.1.jpg": None}}
    assert sorted(by_id(make(files))) == ["0.tar/a.jpg", "0.tar/b.1.jpg", "0.tar/b.jpg"]


def test_words_in_the_names_are_the_splits(make):
    files = {f"{name}.tar": {"a.png": None} for name in ("cc3m-train-0000", "cc3m-validation-00", "test/x", "y")}
    ids = [sorted(by_id(make(files, split))) for split in ("train", "val", "test")]
    assert ids == [["cc3m-train-0000.tar/a.png", "y.tar/a.png"], ["cc3m-validation-00.tar/a.png"], ["test/x.tar/a.png"]]


def test_a_share_is_held_out_by_hash_and_stays_when_shards_come(make):
    files = {f"{shard}.tar": {f"{i:03d}.png": b"x" for i in range(100)} for shard in "abc"}
    train, val = (set(by_id(make(files, split, val_fraction=0.1))) for split in ("train", "val"))
    assert len(train | val) == 300 and not train & val and 15 < len(val) < 50
    more = set(by_id(make({"d.tar": {"000.png": b"x"}}, "val", val_fraction=0.1)))
    assert {id for id in more if not id.startswith("d")} == val
    assert len(make({}, "val", val_fraction=1e-9)) == 1  # at least one


def test_the_index_is_made_once_and_again_when_a_shard_changes(make, monkeypatch, tmp_path):
    made, real = [], tar_index.index_shard
    monkeypatch.setattr(
        tar_index, "index_shard", lambda path, shard, index: (made.append(shard), real(path, shard, index))
    )
    files = {"a.tar": {"1.png": None}, "b.tar": {"1.png": None}}
    first = make(files).fingerprint()
    assert made == ["a.tar", "b.tar"] and make({}).fingerprint() == first and len(made) == 2
    data = make({"b.tar": {"1.png": None, "2.png": None}})
    assert made == ["a.tar", "b.tar", "b.tar"] and len(data) == 3 and data.fingerprint() != first
    for path in (tmp_path / "tars/.latentdiff").glob("a.*"):
        path.write_bytes(path.read_bytes()[:100])  # damaged
    assert len(make({})) == 3 and made[-1] == "a.tar"


def test_ranks_begin_at_different_shards(make, monkeypatch):
    made, real = [], tar_index.index_shard
    monkeypatch.setattr(
        tar_index, "index_shard", lambda path, shard, index: (made.append(shard), real(path, shard, index))
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    data = make({f"{i}.tar": {"a.png": None} for i in range(4)})
    assert made == ["2.tar", "3.tar", "0.tar", "1.tar"]
    assert [data.id(i)[0] for i in range(4)] == list("0123")


def test_a_read_only_folder_is_indexed_in_the_cache(make, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars/.latentdiff").write_text("in the way, as a folder that cannot be written")
    assert len(make({"a.tar": {"1.png": None}})) == 1
    assert len(list((tmp_path / "cache/latentdiff").rglob("a.tar.safetensors"))) == 1
    monkeypatch.setattr(tar_shards, "_cache", lambda root: tmp_path / "tars/a.tar")
    write(tmp_path / "tars/b.tar", {"1.png": None})
    with pytest.raises(UserError, match="data.index=FOLDER"):
        make({})
    assert len(make({}, index=str(tmp_path / "mine"))) == 2 and (tmp_path / "mine/b.tar.safetensors").exists()


@pytest.mark.parametrize("name", ["../../up.png", "/abs.png", "a/../../up.png", "..\\up.png"])
def test_a_name_that_leads_out_is_counted_and_left_out(make, tmp_path, name):
    data = make({"0.tar": {name: None, "b.png": None}}, max_bad_fraction=1.0)
    ((id, reason),) = data.unreadable
    assert len(data) == 1 and "points outside" in reason
    assert not (tmp_path.parent / "up.png").exists()


def test_links_and_devices_are_counted_and_left_out(make, tmp_path):
    (tmp_path / "secret.png").write_bytes(png())
    members = {"b.png": None}
    members["a.png"] = link("a.png", str(tmp_path / "secret.png"))
    members["c.png"] = link("c.png", "b.png", tarfile.LNKTYPE)
    members["d.png"] = link("d.png", "", tarfile.CHRTYPE)
    members["e"] = link("e", "", tarfile.FIFOTYPE)
    data = make({"0.tar": members}, max_bad_fraction=1.0)
    assert list(by_id(data)) == ["0.tar/b.png"]
    assert [id for id, _ in data.unreadable] == ["0.tar/a.png", "0.tar/c.png", "0.tar/d.png", "0.tar/e"]
    assert all("plain file" in reason for _, reason in data.unreadable)


def test_a_truncated_end_costs_what_is_cut_and_is_counted(make, tmp_path):
    make({"0.tar": {f"{i}.png": np.random.default_rng(i).bytes(2000) for i in range(4)}})
    path = tmp_path / "tars/0.tar"
    path.write_bytes(path.read_bytes()[: 3 * 2560 + 1000])  # in the middle of the last one
    data = make({}, max_bad_fraction=1.0)
    assert len(data) == 3
    reasons = dict(data.unreadable)
    assert "is truncated" in reasons["0.tar/3.png"] and "damaged" in reasons["0.tar"]
    with pytest.raises(UserError, match=r"2 of 5 images cannot be used.*\n  0.tar/3.png: is truncated"):
        make({}, max_bad_fraction=0.2)


def test_a_damaged_header_ends_the_shard_and_is_counted(make, tmp_path):
    make({"0.tar": {f"{i}.png": b"x" * 100 for i in range(4)}})
    path = tmp_path / "tars/0.tar"
    content = bytearray(path.read_bytes())
    content[2048:2060] = b"?" * 12
    path.write_bytes(content)
    data = make({}, max_bad_fraction=1.0)
    assert (
        len(data) == 2 and "damaged" in dict(data.unreadable)["0.tar"] and "byte 2048" in dict(data.unreadable)["0.tar"]
    )


def test_a_size_that_goes_backwards_or_beyond_ends_the_shard(make, tmp_path):
    for size, where in ((-1024, "0.tar"), (2**62, "0.tar/huge.png")):
        huge = tarfile.TarInfo("huge.png")
        write(tmp_path / "tars/0.tar", {"a.png": None})
        header = bytearray(huge.tobuf(tarfile.GNU_FORMAT))
        header[124:136] = (size % 2**96 | (0xFF << 88 if size < 0 else 0x80 << 88)).to_bytes(12, "big")
        header[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(header))[0]
        path = tmp_path / "tars/0.tar"
        path.write_bytes(path.read_bytes()[:1024] + bytes(header) + bytes(10240))
        data = make({}, max_bad_fraction=1.0)
        assert len(data) == 1 and where in dict(data.unreadable)


def test_what_is_too_large_is_counted(make, monkeypatch):
    monkeypatch.setitem(tar_index.MAX_BYTES, "image", 1000)
    monkeypatch.setitem(tar_index.MAX_BYTES, "txt", 10)
    data = make({"0.tar": {"a.png": b"x" * 2000, "b.png": None, "b.txt": "long " * 9}}, max_bad_fraction=1.0)
    assert len(data) == 1 and dict(data.unreadable).keys() == {"0.tar/a.png", "0.tar/b.txt"}
    assert "has 2000 bytes" in dict(data.unreadable)["0.tar/a.png"]


def test_json_that_is_none_makes_its_image_bad(make):
    for content in ("{", "[1]", "NaN", "[" * 5000, b"\xff\xfe"):
        with pytest.raises(BadImage, match="its json"):
            make({"0.tar": {"a.png": None, "a.json": content}}).item(0, 0)


def test_a_text_without_a_image_is_counted(make):
    data = make({"0.tar": {"a.png": None, "b.txt": "x"}}, max_bad_fraction=1.0)
    assert data.unreadable == [("0.tar/b.txt", "has no image beside it")]


@pytest.mark.parametrize(
    "files, words",
    [
        ({}, "does not exist"),
        ({"x.md": "x"}, "holds no .tar; it holds x.md"),
        ({"x.tar.gz": "x"}, "x.tar.gz is compressed"),
        ({"x.tar": "no tar " * 200}, "holds no images"),
        ({"x.tar": ""}, "holds no images"),
    ],
)
def test_what_holds_no_shards_is_refused(make, tmp_path, files, words):
    for name, content in files.items():
        (tmp_path / "tars").mkdir(exist_ok=True)
        (tmp_path / "tars" / name).write_text(content)
    with pytest.raises(UserError, match=words):
        make({}, max_bad_fraction=1.0)


def test_a_shard_that_is_still_being_written_is_refused(make, monkeypatch):
    monkeypatch.setattr(tar_index, "read_facts", lambda path, index: None)
    with pytest.raises(UserError, match="changed while it was read"):
        make({"0.tar": {"a.png": None}})


def test_an_index_that_vanishes_is_a_plain_error(make, tmp_path):
    data = make({"0.tar": {"a.png": None}})
    (tmp_path / "tars/.latentdiff/0.tar.safetensors").unlink()
    with pytest.raises(UserError, match="changed or removed while it was used"):
        data.item(0, 0)


def test_a_shard_that_vanishes_makes_its_images_bad(make, tmp_path):
    data = make({"0.tar": {"a.png": None}})
    (tmp_path / "tars/0.tar").unlink()
    with pytest.raises(BadImage, match="No such file"):
        data.item(0, 0)


@pytest.mark.slow
@pytest.mark.skipif(not NASTY.exists(), reason=f"needs {NASTY} (LATENTDIFF_DATA)")
@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_every_nasty_file_is_taken_or_refused_as_its_manifest_says(kind, tmp_path):
    entries = [json.loads(line) for line in (NASTY / "manifest.jsonl").read_text("utf-8").splitlines()]
    options = {"size": 32, "val_fraction": 0.0, "max_bad_fraction": 1.0}
    if kind == "folder":
        data = FolderDataset(FolderConfig(str(NASTY / "files"), **options), "train")
    else:
        with tarfile.open(tmp_path / "nasty.tar", "w") as tar:
            for entry in entries:
                tar.add(NASTY / entry["file_name"], Path(entry["file_name"]).name)
        data = TarDataset(TarConfig(str(tmp_path / "nasty.tar"), **options), "train")
    outcomes = {}
    for i in range(len(data)):
        try:
            outcomes[Path(data.id(i)).name] = data.item(i, 0)["image"].shape == (32, 32, 3)
        except BadImage:
            outcomes[Path(data.id(i)).name] = False
    assert len(data) == 120 and data.unreadable == []
    assert outcomes == {Path(entry["file_name"]).name: entry["pillow"] == "ok" for entry in entries}
