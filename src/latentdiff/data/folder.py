"""A folder of images: plain, in class sub-folders, with x.txt beside x.jpg, or with a metadata table."""

import os
from dataclasses import dataclass

from PIL import Image

from latentdiff.config import UserError
from latentdiff.data.dataset import Dataset, ImageDataConfig, Metadata, divide
from latentdiff.data.image import BadImage, open_image, refuse_too_many
from latentdiff.data.listing import Listing, caption_list, list_images


@dataclass(frozen=True)
class FolderConfig(ImageDataConfig):
    path: str = "data"  # folder of images, with or without train/ val/ test/ and metadata.jsonl, .csv or x.txt
    caption: str = "text"  # metadata column with the caption or a list of captions; several columns: text,text_long

    def open(self, split: str) -> "FolderDataset":
        return FolderDataset(self, split)


class FolderDataset(Dataset):
    """One split of a folder; class numbers are the same in all splits."""

    def __init__(self, config: ImageDataConfig, split: str) -> None:
        super().__init__(config, split)
        if not os.path.isdir(config.path):
            problem = "is a file, not a folder" if os.path.exists(config.path) else "does not exist"
            raise UserError(f"data.path={config.path!r} {problem} (looked for {os.path.abspath(config.path)})")
        self.listing = listing = self.list_files()
        self.unreadable, self.unlisted = listing.unreadable, listing.unlisted
        self.label_names, self.category_names = listing.label_names, listing.category_names
        total = sum(map(len, listing.splits.values())) + len(self.unreadable)
        refuse_too_many(self.unreadable, total, config.max_bad_fraction)
        self.ids = listing.splits.get(split, [])
        if "val" not in listing.splits and split != "test" and config.val_fraction:
            self.ids = divide(listing.splits.get("train", []), config.val_fraction, split)
        self.metadata_folder = listing.metadata_folders.get(split, listing.metadata_folders["train"])
        if not self.ids and split != "val":
            raise UserError(_no_images(config.path, split, self.unreadable))
        # one source of captions for all images: the first that has any
        self.source = "metadata" if any(listing.captions.values()) else "sidecar" if listing.sidecars else ""
        self.source = self.source or ("class" if listing.classes else "")
        self.has_captions = bool(self.source)

    def list_files(self) -> Listing:
        """The images of the folder with their metadata."""
        return list_images(self.config.path, self.config.caption)

    def no_captions_reason(self) -> str:
        if self.listing.columns_of:
            columns = ", ".join(sorted(self.listing.columns)) or "none"
            return f"its metadata has no column {self.config.caption!r} (data.caption); its columns are {columns}"
        ignored = sorted(self.listing.ignored_tables, key=lambda name: "metadata" not in name.lower())[:3]
        hint = f"; {', '.join(ignored)} is not read: rename it and its columns accordingly" if ignored else ""
        return f"it needs a metadata.jsonl or metadata.csv (file_name, text), or x.txt beside x.jpg{hint}"

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
        try:
            with open(self.file(i), "rb") as file:
                return file.read()
        except OSError as error:
            raise BadImage(error.strerror) from None

    def load_image(self, i: int) -> Image.Image:
        return open_image(self.file(i))

    def record(self, i: int, key: int) -> dict:
        record = super().record(i, key)
        if isinstance(record.get("map_file_name"), str):
            record["map_file_name"] = self.metadata_path(record["map_file_name"])
        return record

    def metadata(self, i: int) -> Metadata:
        id = self.ids[i]
        return Metadata(self.captions_of(i), self.listing.labels.get(id), self.listing.columns_of.get(id, {}))

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
        id = self.ids[i]
        exists = id in self.listing.empty_captions or os.path.exists(os.path.splitext(self.file(i))[0] + ".txt")
        return "empty" if exists else "missing"

    def fingerprint(self) -> str:
        """A hash of names and sizes of the files, and of the preprocessing."""
        sizes = (os.path.getsize(self.file(i)) if os.path.exists(self.file(i)) else -1 for i in range(len(self)))
        return self.hash_pixels(zip(self.ids, sizes))


def caption_lines(content: bytes) -> list[str]:
    """The captions of a text file, one per line."""
    return caption_list(content.decode("utf-8-sig", "replace").splitlines())


def _no_images(path: str, split: str, unreadable: list[tuple[str, str]]) -> str:
    names = os.listdir(path)
    listed = ", ".join(sorted(names)[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "nothing"
    hint = "; data=Tar reads .tar shards" if any(".tar" in name for name in names) else ""
    reason = f"; {unreadable[0][0]} {unreadable[0][1]}" if unreadable else hint
    folder = "" if split == "train" else f" (in {path}/{split})"
    return f"data.path={path!r} holds no images to {split} on{folder}; it holds {listed}{reason}"
