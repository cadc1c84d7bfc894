"""A folder of images: plain, in class sub-folders, with x.txt beside x.jpg, or with a metadata table."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image

from latentdiff.config import UserError
from latentdiff.data.dataset import Dataset, ImageDataConfig, choose, held_out
from latentdiff.data.image import BadImage, open_image, refuse_too_many
from latentdiff.data.listing import Listing, caption_list, list_images

RESERVED = {  # fields of an item; metadata columns of these names are ignored
    "id", "image", "view", "key", "index", "bad", "tokens", "mean", "logvar", "label", "caption", "boxes", "low_res",
    "mask", "segmentation",
}  # fmt: skip


@dataclass(frozen=True)
class FolderConfig(ImageDataConfig):
    path: str = "data"  # folder of images, with or without train/ val/ test/ and metadata.jsonl, .csv or x.txt
    caption: str = "text"  # metadata column with the caption or a list of captions; several columns: text,text_long

    def open(self, split: str) -> "FolderDataset":
        return FolderDataset(self, split)

    def list_files(self) -> Listing:
        """The images of the folder with their metadata."""
        return list_images(self.path, self.caption)

    def no_captions(self, listing: Listing) -> str:
        """Why the folder has no captions."""
        if listing.columns_of:
            columns = ", ".join(sorted(listing.columns)) or "none"
            return f"its metadata has no column {self.caption!r} (data.caption); its columns are {columns}"
        ignored = sorted(listing.ignored_tables, key=lambda name: "metadata" not in name.lower())[:3]
        hint = f"; {', '.join(ignored)} is not read: rename it and its columns accordingly" if ignored else ""
        return f"it needs a metadata.jsonl or metadata.csv (file_name, text), or x.txt beside x.jpg{hint}"


class FolderDataset(Dataset):
    """One split of a folder with any kind of listing; class numbers are the same in all splits.

    config: a FolderConfig, or another config with `list_files` and `no_captions`.
    """

    def __init__(self, config: FolderConfig, split: str) -> None:
        super().__init__(config, split)
        check_path(config.path)
        self.listing = listing = config.list_files()
        self.unreadable, self.unlisted = listing.unreadable, listing.unlisted
        self.label_names, self.category_names = listing.label_names, listing.category_names
        total = sum(map(len, listing.splits.values())) + len(self.unreadable)
        refuse_too_many(self.unreadable, total, config.max_bad_fraction)
        self.ids = self._ids_of(split)
        self.metadata_folder = listing.metadata_folders.get(split, listing.metadata_folders["train"])
        if not self.ids and split != "val":
            raise UserError(_no_images(config.path, split, self.unreadable))
        # one source of captions for all images: the first that has any
        self.source = "metadata" if any(listing.captions.values()) else "sidecar" if listing.sidecars else ""
        self.source = self.source or ("class" if listing.classes else "")
        self.has_captions = bool(self.source)

    def __len__(self) -> int:
        return len(self.ids)

    def id(self, i: int) -> str:
        return self.ids[i]

    def file(self, i: int) -> str:
        """The path of image i."""
        return os.path.join(self.config.path, self.ids[i])

    def metadata_path(self, name: str) -> str:
        """The path of a file that the metadata names, such as map_file_name; never outside of the folder."""
        inside = os.path.normpath(os.path.join(self.metadata_folder, name))
        if os.path.isabs(inside) or inside.startswith(".."):
            raise BadImage(f"its metadata names {name!r}, which is outside of the folder")
        return os.path.join(self.config.path, inside)

    def content(self, i: int) -> bytes:
        """The bytes of image file i; raises BadImage if it cannot be read."""
        try:
            with open(self.file(i), "rb") as file:
                return file.read()
        except OSError as error:
            raise BadImage(error.strerror) from None

    def load_image(self, i: int) -> Image.Image:
        return open_image(self.file(i))

    def record(self, i: int, key: int) -> dict:
        """Metadata columns, id, label (int) and caption, if there are any; map_file_name becomes a path."""
        id = self.ids[i]
        columns = self.listing.columns_of.get(id, {})
        record = {name: value for name, value in columns.items() if name not in RESERVED} | {"id": id}
        if isinstance(record.get("map_file_name"), str):
            record["map_file_name"] = self.metadata_path(record["map_file_name"])
        if id in self.listing.labels:
            record["label"] = self.listing.labels[id]
        if self.has_captions:
            record["caption"] = choose(self.captions_of(i), key)
        return record

    def captions_of(self, i: int) -> list[str]:
        id = self.ids[i]
        if self.source == "metadata":
            return self.listing.captions.get(id, [])
        if self.source == "class":
            return caption_list(self.listing.classes[id].replace("_", " ").replace("-", " "))
        try:
            with open(os.path.join(self.config.path, os.path.splitext(id)[0] + ".txt"), "rb") as file:
                return caption_lines(file.read()) if self.source else []
        except OSError:
            return []

    def missing_caption_reason(self, i: int) -> str:
        """Why item i has no caption: "empty" or "missing"."""
        id = self.ids[i]
        exists = id in self.listing.empty_captions or os.path.exists(os.path.splitext(self.file(i))[0] + ".txt")
        return "empty" if exists else "missing"

    def captions(self) -> list[str]:
        if not self.has_captions:
            reason = self.config.no_captions(self.listing)
            raise UserError(f"data.path={self.config.path!r} has no captions: {reason}")
        with ThreadPoolExecutor(8) as pool:  # sidecar files are small, and may lie on a network file system
            return [caption for captions in pool.map(self.captions_of, range(len(self))) for caption in captions]

    def fingerprint(self) -> str:
        """A hash of names and sizes of the files, and of the preprocessing."""
        sizes = (os.path.getsize(self.file(i)) if os.path.exists(self.file(i)) else -1 for i in range(len(self)))
        return self.hash_pixels(zip(self.ids, sizes))

    def _ids_of(self, split: str) -> list[str]:
        splits, fraction = self.listing.splits, self.config.val_fraction
        if "val" in splits or split == "test" or not fraction:
            return splits.get(split, [])
        train = splits.get("train", [])
        val = held_out(train, fraction)
        return [id for id in train if (id in val) == (split == "val")]


def caption_lines(content: bytes) -> list[str]:
    """The captions of a text file, one per line."""
    return caption_list(content.decode("utf-8-sig", "replace").splitlines())


def check_path(path: str) -> None:
    """Refuse (UserError) a path that is not a folder."""
    if not os.path.isdir(path):
        problem = "is a file, not a folder" if os.path.exists(path) else "does not exist"
        raise UserError(f"data.path={path!r} {problem} (looked for {os.path.abspath(path)})")


def _no_images(path: str, split: str, unreadable: list[tuple[str, str]]) -> str:
    names = os.listdir(path)
    listed = ", ".join(sorted(names)[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "nothing"
    hint = "; data=Tar reads .tar shards" if any(".tar" in name for name in names) else ""
    reason = f"; {unreadable[0][0]} {unreadable[0][1]}" if unreadable else hint
    folder = "" if split == "train" else f" (in {path}/{split})"
    return f"data.path={path!r} holds no images to {split} on{folder}; it holds {listed}{reason}"
