"""A folder of pictures on disk: plain, in class sub-folders, with x.txt beside x.jpg, or with a metadata table."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from latentdiff import rng
from latentdiff.config import UserError
from latentdiff.data.coco import CocoConfig, list_coco
from latentdiff.data.image import CROPS, BadImage, resize_and_crop, open_image, refuse_too_many
from latentdiff.data.listing import Listing, list_pictures, texts

RESERVED = {  # of an item; a column of such a name is not read
    "id", "image", "view", "key", "index", "bad", "tokens", "mean", "logvar", "label", "caption", "boxes", "low_res",
    "mask", "segmentation",
}  # fmt: skip


@dataclass(frozen=True)
class FolderConfig:
    path: str = "data"  # folder of pictures, perhaps with train/ val/ test/, and metadata.jsonl, .csv or x.txt
    size: int = 256  # height and width in pixels that pictures are resized to cover and cropped to
    width: int = 0  # width, where it is not as the height (0: as size)
    crop: str = "center"  # center | random: which part of a picture that has another shape
    flip: bool = False  # mirror half of the views; makes captions that say left or right untrue
    caption: str = "text"  # metadata column with the caption or a list of them; several columns: text,text_long
    val_fraction: float = 0.02  # held out for validation by a hash of the name, where there is no val/ folder
    max_bad_fraction: float = 0.05  # stop when more than this share of the pictures cannot be read

    @property
    def image_size(self) -> tuple[int, int]:
        return self.size, self.width or self.size

    def open(self, split: str):
        return FolderDataset(self, split)


class FolderDataset:
    """One split of a folder, or of a folder with COCO's annotations. Labels are those of all its splits together.

    .label_names  one per class, empty without labels     .bad      [(id, reason)] found without opening a picture
    .orphans      pictures that no metadata names         .has_captions
    .category_names  of boxes, where annotations say them
    """

    def __init__(self, config: FolderConfig | CocoConfig, split: str):
        check_preprocessing(config)
        check_path(config.path)
        assert split in ("train", "val", "test"), f"there is no split {split!r}"
        self.config = config
        self.height, self.width = config.size, config.width or config.size
        self.listing = listing = _list(config)
        self.bad, self.orphans, self.label_names = listing.bad, listing.orphans, listing.label_names
        self.category_names = listing.category_names
        total = sum(map(len, listing.splits.values()))
        refuse_too_many(self.bad, total + len(self.bad), config.max_bad_fraction)
        self.ids = self._ids(split)
        self.home = listing.homes.get(split, listing.homes["train"])
        if not self.ids and split != "val":
            raise UserError(_nothing(config.path, split, "" if split == "train" else "/test", self.bad))
        # one source for all pictures: the first that says anything
        self.source = "metadata" if any(listing.captions.values()) else "sidecar" if listing.sidecars else ""
        self.source = self.source or ("class" if listing.classes else "")
        self.has_captions = bool(self.source)

    def __len__(self) -> int:
        return len(self.ids)

    def id(self, i: int) -> str:
        return self.ids[i]

    def file(self, i: int) -> str:
        """Where picture i lies on the disk."""
        return os.path.join(self.config.path, self.ids[i])

    def beside(self, name: str) -> str:
        """Where a file lies that a column of the metadata names, such as map_file_name; never outside the folder."""
        inside = os.path.normpath(os.path.join(self.home, name))
        if os.path.isabs(inside) or inside.startswith(".."):
            raise BadImage(f"its metadata names {name!r}, which is outside the folder")
        return os.path.join(self.config.path, inside)

    def content(self, i: int) -> bytes:
        """The bytes of picture i; BadImage if there are none."""
        try:
            with open(self.file(i), "rb") as file:
                return file.read()
        except OSError as error:
            raise BadImage(error.strerror) from None

    def record(self, i: int, key: int) -> dict:
        """Metadata columns, id, label (int) and caption, where there are any; `key` alone chooses among captions.

        Column map_file_name becomes the path of that file.
        """
        id = self.ids[i]
        columns = self.listing.rows.get(id, {})
        record = {name: value for name, value in columns.items() if name not in RESERVED} | {"id": id}
        if isinstance(record.get("map_file_name"), str):
            record["map_file_name"] = self.beside(record["map_file_name"])
        if id in self.listing.labels:
            record["label"] = self.listing.labels[id]
        if self.has_captions:
            record["caption"] = choose(self.texts(i), key)
        return record

    def item(self, i: int, key: int) -> dict:
        """The record, image uint8 [H, W, 3] and view (which part it shows); `key` alone decides crop and flip."""
        image, view = resize_and_crop(open_image(self.file(i)), self.height, self.width, self.config.crop, key, self.config.flip)
        return self.record(i, key) | {"image": image, "view": view}

    def texts(self, i: int) -> list[str]:
        """The captions of picture i."""
        id = self.ids[i]
        if self.source == "metadata":
            return self.listing.captions.get(id, [])
        if self.source == "class":
            return texts(self.listing.classes[id].replace("_", " ").replace("-", " "))
        try:
            with open(os.path.join(self.config.path, os.path.splitext(id)[0] + ".txt"), "rb") as file:
                return lines(file.read()) if self.source else []
        except OSError:
            return []

    def silence(self, i: int) -> str:
        """Why picture i has no caption."""
        id = self.ids[i]
        there = id in self.listing.empty or os.path.exists(os.path.splitext(self.file(i))[0] + ".txt")
        return "empty" if there else "missing"

    def captions(self) -> list[str]:
        """Every caption of the split; UserError that says what is missing when the folder has none."""
        if not self.has_captions:
            raise UserError(f"data.path={self.config.path!r} has no captions: {self._why()}")
        with ThreadPoolExecutor(8) as pool:  # sidecars are small files, perhaps on a network
            return [text for found in pool.map(self.texts, range(len(self))) for text in found]

    def fingerprint(self) -> str:
        """Hex hash of what the pixels depend on: names and sizes of the files, and the preprocessing."""
        digest = hashlib.blake2b(repr((self.height, self.width, self.config.crop, self.config.flip)).encode())
        for i, id in enumerate(self.ids):
            size = os.path.getsize(self.file(i)) if os.path.exists(self.file(i)) else -1
            digest.update(repr((id, size)).encode())
        return digest.hexdigest()[:32]

    def _ids(self, split: str) -> list[str]:
        splits, share = self.listing.splits, self.config.val_fraction
        if "val" in splits or split == "test" or not share:
            return splits.get(split, [])
        # by hash, so that a picture keeps its side when others come; a small folder gives at least one
        marks = {id: rng.key("val", id) / 2**63 for id in splits.get("train", [])}
        lowest = min(marks.values(), default=1.0) if len(marks) > 1 else -1.0
        return [id for id, mark in marks.items() if (mark < share or mark == lowest) == (split == "val")]

    def _why(self) -> str:
        if self.listing.rows:
            columns = ", ".join(sorted(self.listing.columns)) or "none"
            if isinstance(self.config, CocoConfig):
                return f"there is no captions_*.json beside its annotations; these have {columns}"
            return f"its metadata has no column {self.config.caption!r} (data.caption); its columns are {columns}"
        why = "it needs a metadata.jsonl or metadata.csv (file_name, text), or x.txt beside x.jpg"
        unread = sorted(self.listing.unread, key=lambda name: "metadata" not in name.lower())
        found = ", ".join(unread[:3])
        return f"{why}; {found} is not read: it must have one of these names and forms" if found else why


def choose(texts: list[str], key: int) -> str:
    """One of a picture's captions; "" where it has none: such a picture trains the unconditional model."""
    return texts[rng.key(key, "caption") % len(texts)] if texts else ""


def lines(content: bytes) -> list[str]:
    """The captions of a text file, one per line."""
    return texts(content.decode("utf-8-sig", "replace").splitlines())


def check_preprocessing(config: object) -> None:
    """UserError if the fields that all data sets of pictures share are out of range."""
    if config.crop not in CROPS:
        raise UserError(f"data.crop={config.crop!r} is none of {', '.join(CROPS)}")
    if not 1 <= config.size <= 2**14 or not 0 <= config.width <= 2**14:
        raise UserError(f"data.size={config.size} data.width={config.width}: use pixels, such as data.size=256")
    if not 0 <= config.val_fraction < 1:
        raise UserError(f"data.val_fraction={config.val_fraction} is no share from 0 to below 1")
    if not 0 <= config.max_bad_fraction <= 1:
        raise UserError(f"data.max_bad_fraction={config.max_bad_fraction} is no share from 0 to 1")


def check_path(path: str) -> None:
    """UserError unless it is a folder."""
    if not os.path.isdir(path):
        what = "is a file, not a folder" if os.path.exists(path) else "does not exist"
        raise UserError(f"data.path={path!r} {what} (looked for {os.path.abspath(path)})")


def _list(config: FolderConfig | CocoConfig) -> Listing:
    return list_coco(config.path) if isinstance(config, CocoConfig) else list_pictures(config.path, config.caption)


def _nothing(path: str, split: str, folder: str, bad: list[tuple[str, str]]) -> str:
    names = os.listdir(path)
    seen = ", ".join(sorted(names)[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "nothing"
    hint = "; data=Tars reads .tar shards" if any(".tar" in name for name in names) else ""
    why = f"; {bad[0][0]} {bad[0][1]}" if bad else hint
    where = folder and f" (in {path}{folder})"
    return f"data.path={path!r} holds no pictures to {split} on{where}; it holds {seen}{why}"
