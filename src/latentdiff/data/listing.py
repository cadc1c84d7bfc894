"""The content of a folder of images, by file names and metadata: splits, captions and classes."""

import csv
import difflib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from posixpath import normpath, splitext
from sys import intern

from latentdiff.config import UserError
from latentdiff.data.image import EXTENSIONS, BadImage, check_header

SPLITS = {"train": "train", "val": "val", "validation": "val", "valid": "val", "dev": "val", "test": "test"}
TABLES = {".csv", ".json", ".jsonl", ".ndjson", ".parquet", ".tsv"}  # formats in which captions are often stored


@dataclass
class Listing:
    """All images of a folder. An id is a path below the folder, with forward slashes; sorted within a split."""

    splits: dict[str, list[str]] = field(default_factory=dict)  # split -> ids; only splits that have a folder
    metadata_folders: dict[str, str] = field(default_factory=dict)  # split -> folder that its file names start from
    columns_of: dict[str, dict] = field(default_factory=dict)  # id -> metadata without file_name and captions
    captions: dict[str, list[str]] = field(default_factory=dict)  # id -> captions of its metadata
    columns: set[str] = field(default_factory=set)
    empty_captions: set[str] = field(default_factory=set)  # ids with an empty caption
    sidecars: bool = False  # an x.txt exists beside an x.jpg
    labels: dict[str, int] = field(default_factory=dict)  # of all images or of none
    label_names: list[str] = field(default_factory=list)
    category_names: list[str] = field(default_factory=list)  # of boxes, if the annotations have names
    classes: dict[str, str] = field(default_factory=dict)  # id -> name of its class sub-folder
    ignored_tables: list[str] = field(default_factory=list)  # files that may be meant as metadata
    maps: set[str] = field(default_factory=set)  # images in the column map_file_name
    unlisted: list[str] = field(default_factory=list)  # images that the metadata does not list
    unreadable: list[tuple[str, str]] = field(default_factory=list)  # (id or file:line, reason)


def list_images(root: str, caption: str) -> Listing:
    """List a folder and read its metadata; `caption` is the column with the captions."""
    names = sorted(scan(root))
    listing, known = Listing(), set(names)
    folders = _split_folders(names)
    for split, folder in folders.items():
        others = tuple(other for other in folders.values() if other and other != folder)
        inside = [name for name in names if name.startswith(folder) and not (others and name.startswith(others))]
        images = [name for name in inside if is_image(root, name)]
        tables = [start + name for start in (folder, "") for name in ("metadata.jsonl", "metadata.csv")]
        table = next((table for table in tables if table in known), None)
        listing.metadata_folders[split] = folder if table is None else table[: table.rindex("metadata")]
        if table is None:
            listing.splits[split] = images
        else:
            shared = listing.metadata_folders[split] != folder or not folder  # then it may list images of other splits
            listed = _read_table(listing, root, table, caption, known, set(inside) if shared else None)
            listing.splits[split] = sorted(listed)
            listing.unlisted += [name for name in images if name not in listed | listing.maps]
        top_level = [name for name in inside if name.count("/") == folder.count("/")]
        listing.ignored_tables += [name for name in top_level if name != table and is_table(name[len(folder) :])]
        listing.sidecars |= any(splitext(id)[0] + ".txt" in known for id in listing.splits[split])
    listing.unreadable = list(dict.fromkeys(listing.unreadable))  # two splits may share a table
    _set_labels(listing, folders)
    return listing


def scan(folder: str, prefix: str = "", above: tuple = ()) -> Iterator[str]:
    """All files below a folder except hidden ones; links are followed unless they lead to a parent folder."""
    try:
        stat = os.stat(folder)
        inode = (stat.st_dev, stat.st_ino)
        with os.scandir(folder) as entries:
            for entry in entries if inode not in above else ():
                if entry.name.startswith((".", "__MACOSX")):
                    continue
                if entry.is_dir():
                    yield from scan(entry.path, f"{prefix}{entry.name}/", (*above, inode))
                else:
                    yield prefix + entry.name
    except OSError as error:
        raise UserError(f"data.path: cannot read the folder {folder!r}: {error.strerror}") from None


def is_image(root: str, name: str) -> bool:
    """Whether a file is an image: by its extension or, if it has none, by its content."""
    extension = splitext(name)[1].lower()
    if extension:
        return extension in EXTENSIONS
    try:
        check_header(os.path.join(root, name))
    except BadImage:
        return False
    return True


def _split_folders(names: list[str]) -> dict[str, str]:
    """split -> its folder, as a prefix of ids; without train/, all of it is train except val/ and test/."""
    top = {name[: name.index("/")] for name in names if "/" in name}
    if "train" not in top:
        return {"train": ""} | {split: f"{split}/" for split in ("val", "test") if split in top}
    folders = [(split, f"{name}/") for name, split in SPLITS.items() if name in top]
    return dict(reversed(folders))  # the first name of a split wins


def split_of(name: str) -> str:
    """train, val or test, by the first such word in a name: images/val2017/ is val; else train."""
    return next((SPLITS[word] for word in re.findall("[a-z]+", name.lower()) if word in SPLITS), "train")


def is_table(name: str) -> bool:
    """Whether a file may be meant as metadata, by its name."""
    return name.lower().startswith("metadata") or splitext(name)[1].lower() in TABLES


def _read_table(
    listing: Listing, root: str, table: str, caption: str, known: set[str], only: set[str] | None
) -> set[str]:
    """Add the lines of a metadata file to the listing; returns the ids that it lists. Lines of one image are joined."""
    folder, listed = table[: table.rindex("metadata")], set()
    for number, line in READERS[splitext(table)[1]](os.path.join(root, table)):
        if isinstance(line, dict) and not isinstance(line.get("file_name"), str):
            close = difflib.get_close_matches("file_name", line, 1)
            hint = f" (rename {close[0]}?)" if close else ""
            line = f"has no file_name{hint}; its columns are {', '.join(line)[:200] or 'none'}"
        if isinstance(line, str):
            listing.unreadable.append((f"{table}:{number}", line))
            continue
        listing.columns |= line.keys() - {"file_name"}
        id = normpath(folder + line.pop("file_name").replace("\\", "/"))
        if only is not None and id in known and id not in only:
            continue  # of another split
        if id.startswith(("/", "../")) or not (id in known or os.path.isfile(os.path.join(root, id))):
            listing.unreadable.append((id, f"{table}:{number} names it, but there is no such file in the folder"))
            continue
        values = [line.pop(column.strip(), None) for column in caption.split(",")]
        captions = [text for value in values for text in caption_list(value)]
        listing.captions.setdefault(id, []).extend(captions)
        if not captions and any(value is not None for value in values):
            listing.empty_captions.add(id)
        listing.columns_of.setdefault(id, {intern(name): value for name, value in line.items()})
        if isinstance(line.get("map_file_name"), str):
            listing.maps.add(normpath(folder + line["map_file_name"]))
        listed.add(id)
    return listed


def _jsonl(path: str) -> Iterator[tuple[int, dict | str]]:
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                value = json.loads(line) if line.strip() else None
            except (ValueError, RecursionError) as error:
                yield number, f"is not valid JSON: {error}"
                continue
            if value is not None:
                yield number, value if isinstance(value, dict) else 'is not an object: {"file_name": ..., "text": ...}'


def _csv(path: str) -> Iterator[tuple[int, dict | str]]:
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.DictReader(file)
        try:
            for values in reader:
                yield reader.line_num, {name: value for name, value in values.items() if name is not None and value}
        except csv.Error as error:
            yield reader.line_num, f"is not valid CSV: {error}"


READERS: dict[str, Callable[[str], Iterator[tuple[int, dict | str]]]] = {".jsonl": _jsonl, ".csv": _csv}


def caption_list(value: object) -> list[str]:
    """A caption, a list of captions or None -> the captions that are not empty, as valid UTF-8."""
    values = value if isinstance(value, list) else [value]
    return [text for text in (_valid_utf8(str(v)).strip() for v in values if v is not None) if text]


def _valid_utf8(text: str) -> str:
    """Replace lone surrogates, which JSON and file names may contain, by question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _set_labels(listing: Listing, folders: dict[str, str]) -> None:
    """Labels from the columns label_id or label, or from class sub-folders; the same numbers in every split."""
    ids = [id for split in listing.splits.values() for id in split]
    metadata = [listing.columns_of.get(id, {}) for id in ids]
    below = [id[len(folders[split]) :] for split, members in listing.splits.items() for id in members]
    classes = [name.split("/")[0] if "/" in name else None for name in below]
    if None not in classes and len(set(classes)) > 1:
        listing.classes = dict(zip(ids, classes))
    candidates = [[columns.get(name) for columns in metadata] for name in ("label_id", "label")]
    values = next((column for column in candidates if ids and None not in column), list(listing.classes.values()))
    numbers = [label_number(value) for value in values]
    if None in numbers:  # names
        listing.label_names = sorted({str(value) for value in values})
        index = {name: i for i, name in enumerate(listing.label_names)}
        numbers = [index[str(value)] for value in values]
    else:
        names = {number: columns.get("label", number) for number, columns in zip(numbers, metadata)}
        listing.label_names = [str(names.get(i, i)) for i in range(max(numbers, default=-1) + 1)]
    listing.labels = dict(zip(ids, numbers))


def label_number(value: object) -> int | None:
    """The label as a class number, if it is one, in JSON or CSV; else None."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 6:
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**16 else None
