"""Tar shards: items equal to those of a folder, indices, splits, and lists of unusable members with a reason."""

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


def write_tar(path: Path, members: dict[str, object]) -> None:
    """Write a tar; members: name -> bytes, text, a dict (JSON), a TarInfo, or None (an image)."""
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


def record_indexed_shards(monkeypatch) -> list[str]:
    """A list to which index_shard, called as usual, appends the name of the shard."""
    indexed, index_shard = [], tar_index.index_shard

    def index_and_record(path: str, shard: str, index: Path) -> None:
        indexed.append(shard)
        index_shard(path, shard, index)

    monkeypatch.setattr(tar_index, "index_shard", index_and_record)
    return indexed


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., TarDataset]:
    """make_dataset({shard: {member: content}}, split, field=value): a dataset in a temporary folder."""

    def make_dataset(files: dict[str, dict], split: str = "train", **options) -> TarDataset:
        for shard, members in files.items():
            write_tar(tmp_path / "tars" / shard, members)
        options = {"path": str(tmp_path / "tars"), "size": 8, "val_fraction": 0.0} | options
        return TarDataset(TarConfig(**options), split)

    return make_dataset


def by_id(data: TarDataset) -> dict[str, dict]:
    return {data.id(i): data.record(i, 0) for i in range(len(data))}


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def test_img2dataset_shards_give_images_captions_and_columns(make_dataset):
    files = {"0.tar": {"0001.jpg": None, "0001.txt": "a cat\n", "0001.json": {"url": "x", "key": "0001", "width": 12}}}
    files["1.tar"] = {"0001.webp": None, "0001.txt": "a dog\na hound", "0002.PNG": None}
    data = make_dataset(files)
    records = by_id(data)
    assert sorted(records) == ["0.tar/0001.jpg", "1.tar/0001.webp", "1.tar/0002.PNG"]
    assert records["0.tar/0001.jpg"] == {"id": "0.tar/0001.jpg", "url": "x", "width": 12, "caption": "a cat"}
    assert records["1.tar/0002.PNG"]["caption"] == "" and data.unreadable == []
    assert sorted(data.captions()) == ["a cat", "a dog", "a hound"]
    item = data.item(0, 3)
    assert item["image"].shape == (8, 8, 3) and item["view"].height == 8


def test_a_tar_of_a_folder_gives_the_same_items_as_the_folder(make_dataset, tmp_path):
    colors = {f"{i:02d}.png": (i, 2 * i, 3 * i) for i in range(20)}
    write_tar(tmp_path / "tars" / "all.tar", {name: png(color, (9 + color[0], 8)) for name, color in colors.items()})
    (tmp_path / "folder").mkdir()
    for name, color in colors.items():
        (tmp_path / "folder" / name).write_bytes(png(color, (9 + color[0], 8)))
    options = {"size": 8, "val_fraction": 0.0, "crop": "random", "flip": True}
    folder = FolderDataset(FolderConfig(str(tmp_path / "folder"), **options), "train")
    tars = pickle.loads(pickle.dumps(make_dataset({}, **options)))  # as in a worker process
    indices = {tars.id(i): i for i in range(len(tars))}
    for i in range(len(folder)):
        item, expected = tars.item(indices[f"all.tar/{folder.id(i)}"], 77 + i), folder.item(i, 77 + i)
        assert np.array_equal(item["image"], expected["image"]) and item["view"] == expected["view"]


def test_captions_come_from_a_json_field_or_else_from_the_text_file(make_dataset):
    files = {"0.tar": {"a.png": None, "a.txt": "text", "a.json": {"caption": ["one", "two"], "label": 3}}}
    assert make_dataset(files).record(0, 0)["caption"] == "text"
    data = make_dataset(files, caption="caption")
    assert {data.record(0, key)["caption"] for key in range(20)} == {"one", "two"}
    assert data.record(0, 0)["label"] == 3
    with pytest.raises(UserError, match="no field 'text' .data.caption.; its fields are note"):
        make_dataset({"0.tar": {"a.png": None, "a.json": {"note": "x"}}}).captions()


def test_cls_files_are_labels(make_dataset):
    data = make_dataset({"0.tar": {"a.png": None, "a.cls": "4\n", "b.png": None, "b.cls": "0"}})
    assert {name: r["label"] for name, r in by_id(data).items()} == {"0.tar/a.png": 4, "0.tar/b.png": 0}
    assert data.label_names == ["0", "1", "2", "3", "4"]


def test_boxes_are_read_from_the_json(make_dataset):
    objects = {"bbox": [[0, 0, 4, 4]], "categories": [1]}
    assert make_dataset({"0.tar": {"a.png": None, "a.json": {"objects": objects}}}).record(0, 0)["objects"] == objects


def test_a_member_without_an_extension_is_an_image_if_its_content_is(make_dataset):
    data = make_dataset({"0.tar": {"dir/no_extension": None, "dir/README": "text", "b.png": None}})
    assert sorted(by_id(data)) == ["0.tar/b.png", "0.tar/dir/no_extension"]


def test_further_images_of_a_webdataset_sample_are_not_training_images(make_dataset):
    files = {"0.tar": {"a.jpg": None, "a.seg.png": None, "a.txt": "x", "b.jpg": None, "b.1.jpg": None}}
    assert sorted(by_id(make_dataset(files))) == ["0.tar/a.jpg", "0.tar/b.1.jpg", "0.tar/b.jpg"]


def test_the_name_of_a_shard_determines_its_split(make_dataset):
    files = {f"{name}.tar": {"a.png": None} for name in ("cc3m-train-0000", "cc3m-validation-00", "test/x", "y")}
    ids = [sorted(by_id(make_dataset(files, split))) for split in ("train", "val", "test")]
    assert ids == [["cc3m-train-0000.tar/a.png", "y.tar/a.png"], ["cc3m-validation-00.tar/a.png"], ["test/x.tar/a.png"]]


def test_a_hash_selects_held_out_images_that_stay_when_shards_are_added(make_dataset):
    files = {f"{shard}.tar": {f"{i:03d}.png": b"x" for i in range(100)} for shard in "abc"}
    train, val = (set(by_id(make_dataset(files, split, val_fraction=0.1))) for split in ("train", "val"))
    assert len(train | val) == 300 and not train & val and 15 < len(val) < 50
    val_after = set(by_id(make_dataset({"d.tar": {"000.png": b"x"}}, "val", val_fraction=0.1)))
    assert {id for id in val_after if not id.startswith("d")} == val
    assert len(make_dataset({}, "val", val_fraction=1e-9)) == 1  # at least one


def test_a_shard_is_indexed_once_and_again_when_it_changes(make_dataset, monkeypatch, tmp_path):
    indexed = record_indexed_shards(monkeypatch)
    files = {"a.tar": {"1.png": None}, "b.tar": {"1.png": None}}
    first = make_dataset(files).fingerprint()
    assert indexed == ["a.tar", "b.tar"] and make_dataset({}).fingerprint() == first and len(indexed) == 2
    data = make_dataset({"b.tar": {"1.png": None, "2.png": None}})
    assert indexed == ["a.tar", "b.tar", "b.tar"] and len(data) == 3 and data.fingerprint() != first
    for path in (tmp_path / "tars/.latentdiff").glob("a.*"):
        path.write_bytes(path.read_bytes()[:100])  # damaged
    assert len(make_dataset({})) == 3 and indexed[-1] == "a.tar"


def test_each_rank_starts_indexing_at_another_shard(make_dataset, monkeypatch):
    indexed = record_indexed_shards(monkeypatch)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    data = make_dataset({f"{i}.tar": {"a.png": None} for i in range(4)})
    assert indexed == ["2.tar", "3.tar", "0.tar", "1.tar"]
    assert [data.id(i)[0] for i in range(4)] == list("0123")


def test_the_index_of_a_read_only_folder_is_written_to_the_cache_or_to_data_index(make_dataset, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars/.latentdiff").write_text("not a folder, so that no index can be written to it")
    assert len(make_dataset({"a.tar": {"1.png": None}})) == 1
    assert len(list((tmp_path / "cache/latentdiff").rglob("a.tar.safetensors"))) == 1
    monkeypatch.setattr(tar_shards, "_cache", lambda root: tmp_path / "tars/a.tar")
    write_tar(tmp_path / "tars/b.tar", {"1.png": None})
    with pytest.raises(UserError, match="data.index=FOLDER"):
        make_dataset({})
    assert len(make_dataset({}, index=str(tmp_path / "index"))) == 2 and (tmp_path / "index/b.tar.safetensors").exists()


@pytest.mark.parametrize("name", ["../../up.png", "/abs.png", "a/../../up.png", "..\\up.png"])
def test_a_member_name_that_points_outside_of_the_archive_is_listed_and_skipped(make_dataset, tmp_path, name):
    data = make_dataset({"0.tar": {name: None, "b.png": None}}, max_bad_fraction=1.0)
    ((id, reason),) = data.unreadable
    assert len(data) == 1 and "points outside" in reason
    assert not (tmp_path.parent / "up.png").exists()


def test_links_and_devices_are_listed_and_skipped(make_dataset, tmp_path):
    (tmp_path / "secret.png").write_bytes(png())
    members = {"b.png": None}
    members["a.png"] = link("a.png", str(tmp_path / "secret.png"))
    members["c.png"] = link("c.png", "b.png", tarfile.LNKTYPE)
    members["d.png"] = link("d.png", "", tarfile.CHRTYPE)
    members["e"] = link("e", "", tarfile.FIFOTYPE)
    data = make_dataset({"0.tar": members}, max_bad_fraction=1.0)
    assert list(by_id(data)) == ["0.tar/b.png"]
    assert [id for id, _ in data.unreadable] == ["0.tar/a.png", "0.tar/c.png", "0.tar/d.png", "0.tar/e"]
    assert all("plain file" in reason for _, reason in data.unreadable)


def test_only_the_missing_end_of_a_truncated_shard_is_unusable(make_dataset, tmp_path):
    make_dataset({"0.tar": {f"{i}.png": np.random.default_rng(i).bytes(2000) for i in range(4)}})
    path = tmp_path / "tars/0.tar"
    path.write_bytes(path.read_bytes()[: 3 * 2560 + 1000])  # within the last image
    data = make_dataset({}, max_bad_fraction=1.0)
    assert len(data) == 3
    reasons = dict(data.unreadable)
    assert "is truncated" in reasons["0.tar/3.png"] and "damaged" in reasons["0.tar"]
    with pytest.raises(UserError, match=r"2 of 5 images cannot be used.*\n  0.tar/3.png: is truncated"):
        make_dataset({}, max_bad_fraction=0.2)


def test_members_after_a_damaged_header_are_unusable(make_dataset, tmp_path):
    make_dataset({"0.tar": {f"{i}.png": b"x" * 100 for i in range(4)}})
    path = tmp_path / "tars/0.tar"
    content = bytearray(path.read_bytes())
    content[2048:2060] = b"?" * 12
    path.write_bytes(content)
    data = make_dataset({}, max_bad_fraction=1.0)
    reason = dict(data.unreadable)["0.tar"]
    assert len(data) == 2 and "damaged" in reason and "byte 2048" in reason


def test_members_after_a_negative_or_too_large_size_are_unusable(make_dataset, tmp_path):
    for size, id in ((-1024, "0.tar"), (2**62, "0.tar/huge.png")):
        huge = tarfile.TarInfo("huge.png")
        write_tar(tmp_path / "tars/0.tar", {"a.png": None})
        header = bytearray(huge.tobuf(tarfile.GNU_FORMAT))
        header[124:136] = (size % 2**96 | (0xFF << 88 if size < 0 else 0x80 << 88)).to_bytes(12, "big")
        header[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(header))[0]
        path = tmp_path / "tars/0.tar"
        path.write_bytes(path.read_bytes()[:1024] + bytes(header) + bytes(10240))
        data = make_dataset({}, max_bad_fraction=1.0)
        assert len(data) == 1 and id in dict(data.unreadable)


def test_members_that_are_too_large_are_listed_and_skipped(make_dataset, monkeypatch):
    monkeypatch.setitem(tar_index.MAX_BYTES, "image", 1000)
    monkeypatch.setitem(tar_index.MAX_BYTES, "txt", 10)
    data = make_dataset({"0.tar": {"a.png": b"x" * 2000, "b.png": None, "b.txt": "long " * 9}}, max_bad_fraction=1.0)
    assert len(data) == 1 and dict(data.unreadable).keys() == {"0.tar/a.png", "0.tar/b.txt"}
    assert "has 2000 bytes" in dict(data.unreadable)["0.tar/a.png"]


def test_invalid_json_makes_its_image_bad(make_dataset):
    for content in ("{", "[1]", "NaN", "[" * 5000, b"\xff\xfe"):
        with pytest.raises(BadImage, match="its json"):
            make_dataset({"0.tar": {"a.png": None, "a.json": content}}).item(0, 0)


def test_a_text_file_without_an_image_is_listed(make_dataset):
    data = make_dataset({"0.tar": {"a.png": None, "b.txt": "x"}}, max_bad_fraction=1.0)
    assert data.unreadable == [("0.tar/b.txt", "has no image beside it")]


@pytest.mark.parametrize(
    "files, message",
    [
        ({}, "does not exist"),
        ({"x.md": "x"}, "holds no .tar; it holds x.md"),
        ({"x.tar.gz": "x"}, "x.tar.gz is compressed"),
        ({"x.tar": "no tar " * 200}, "holds no images"),
        ({"x.tar": ""}, "holds no images"),
    ],
)
def test_a_path_without_usable_shards_is_refused(make_dataset, tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / "tars").mkdir(exist_ok=True)
        (tmp_path / "tars" / name).write_text(content)
    with pytest.raises(UserError, match=message):
        make_dataset({}, max_bad_fraction=1.0)


def test_a_shard_that_changes_while_it_is_indexed_is_refused(make_dataset, monkeypatch):
    monkeypatch.setattr(tar_index, "read_facts", lambda path, index: None)
    with pytest.raises(UserError, match="changed while it was read"):
        make_dataset({"0.tar": {"a.png": None}})


def test_a_removed_index_raises_a_user_error(make_dataset, tmp_path):
    data = make_dataset({"0.tar": {"a.png": None}})
    (tmp_path / "tars/.latentdiff/0.tar.safetensors").unlink()
    with pytest.raises(UserError, match="changed or removed while it was used"):
        data.item(0, 0)


def test_a_removed_shard_makes_its_images_bad(make_dataset, tmp_path):
    data = make_dataset({"0.tar": {"a.png": None}})
    (tmp_path / "tars/0.tar").unlink()
    with pytest.raises(BadImage, match="No such file"):
        data.item(0, 0)


@pytest.mark.slow
@pytest.mark.skipif(not NASTY.exists(), reason=f"needs {NASTY} (LATENTDIFF_DATA)")
@pytest.mark.parametrize("format", ["folder", "tar"])
def test_every_difficult_file_is_read_or_refused_as_its_manifest_states(format, tmp_path):
    entries = [json.loads(line) for line in (NASTY / "manifest.jsonl").read_text("utf-8").splitlines()]
    options = {"size": 32, "val_fraction": 0.0, "max_bad_fraction": 1.0}
    if format == "folder":
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
