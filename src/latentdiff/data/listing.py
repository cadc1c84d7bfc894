"""What a folder of pictures holds, told by its names: its splits, metadata, captions and classes."""

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
TABLES = {".csv", ".json", ".jsonl", ".ndjson", ".parquet", ".tsv"}  # what captions are often kept in


@dataclass
class Listing:
    """All pictures of a folder. Ids are paths below it, with forward slashes, sorted within their split."""

    splits: dict[str, list[str]] = field(default_factory=dict)  # split -> ids; only the splits that have a folder
    homes: dict[str, str] = field(default_factory=dict)  # split -> where the file names in its metadata start
    rows: dict[str, dict] = field(default_factory=dict)  # id -> its columns, but for file_name and the captions
    captions: dict[str, list[str]] = field(default_factory=dict)  # id -> what its metadata says
    columns: set[str] = field(default_factory=set)
    empty: set[str] = field(default_factory=set)  # ids whose caption is there, but says nothing
    sidecars: bool = False  # an x.txt lies beside an x.jpg
    labels: dict[str, int] = field(default_factory=dict)  # of all pictures or of none
    label_names: list[str] = field(default_factory=list)
    category_names: list[str] = field(default_factory=list)  # of boxes, where the annotations name them
    classes: dict[str, str] = field(default_factory=dict)  # id -> name of its class sub-folder
    unread: list[str] = field(default_factory=list)  # tables that may be meant as metadata
    maps: set[str] = field(default_factory=set)  # images that a column map_file_name names
    orphans: list[str] = field(default_factory=list)  # pictures that the metadata beside them does not name
    bad: list[tuple[str, str]] = field(default_factory=list)  # (id or file:line, reason)


def list_pictures(root: str, caption: str) -> Listing:
    """Reads a folder's names and its metadata; `caption` is the column that holds the captions."""
    names = sorted(scan(root))
    listing, known = Listing(), set(names)
    folders = _split_folders(names)
    for split, folder in folders.items():
        others = tuple(other for other in folders.values() if other and other != folder)
        inside = [name for name in names if name.startswith(folder) and not (others and name.startswith(others))]
        pictures = [name for name in inside if is_picture(root, name)]
        tables = [home + name for home in (folder, "") for name in ("metadata.jsonl", "metadata.csv")]
        table = next((table for table in tables if table in known), None)
        listing.homes[split] = folder if table is None else table[: table.rindex("metadata")]
        if table is None:
            listing.splits[split] = pictures
        else:
            shared = listing.homes[split] != folder or not folder  # then it may name pictures of other splits
            named = _read_table(listing, root, table, caption, known, set(inside) if shared else None)
            listing.splits[split] = sorted(named)
            listing.orphans += [name for name in pictures if name not in named | listing.maps]
        here = [name for name in inside if name.count("/") == folder.count("/")]
        listing.unread += [name for name in here if name != table and is_table(name[len(folder) :])]
        listing.sidecars |= any(splitext(id)[0] + ".txt" in known for id in listing.splits[split])
    listing.bad = list(dict.fromkeys(listing.bad))  # two splits may read the same table
    _label(listing, folders)
    return listing


def scan(folder: str, prefix: str = "", above: tuple = ()) -> Iterator[str]:
    """Every file below the folder, hidden ones apart; links are followed, unless they lead back up."""
    try:
        about = os.stat(folder)
        here = (about.st_dev, about.st_ino)
        with os.scandir(folder) as entries:
            for entry in entries if here not in above else ():
                if entry.name.startswith((".", "__MACOSX")):
                    continue
                if entry.is_dir():
                    yield from scan(entry.path, f"{prefix}{entry.name}/", (*above, here))
                else:
                    yield prefix + entry.name
    except OSError as error:
        raise UserError(f"data.path: cannot read the folder {folder!r}: {error.strerror}") from None


def is_picture(root: str, name: str) -> bool:
    """Whether a file is taken for a picture: by its extension, or, where it has none, by its content."""
    extension = splitext(name)[1].lower()
    if extension:
        return extension in EXTENSIONS
    try:
        check_header(os.path.join(root, name))
    except BadImage:
        return False
    return True


def _split_folders(names: list[str]) -> dict[str, str]:
    """split -> its folder, as a prefix of ids; without a train/ the whole is train, but for val/ and test/ in it."""
    top = {name[: name.index("/")] for name in names if "/" in name}
    if "train" not in top:
        return {"train": ""} | {split: f"{split}/" for split in ("val", "test") if split in top}
    found = [(split, f"{name}/") for name, split in SPLITS.items() if name in top]
    return dict(reversed(found))  # the first name of a split wins


def split_of(name: str) -> str:
    """train, val or test, by the first word of a name that says one: images/val2017/ is val; else train."""
    words = re.findall("[a-z]+", name.lower())
    return next((SPLITS[word] for word in words if word in SPLITS), "train")


def is_table(name: str) -> bool:
    """Whether a file's name says that it may be meant as metadata."""
    return name.lower().startswith("metadata") or splitext(name)[1].lower() in TABLES


def _read_table(
    listing: Listing, root: str, table: str, caption: str, known: set[str], only: set[str] | None
) -> set[str]:
    """Takes over the rows of a metadata file; -> the ids it names. Rows of one picture are joined."""
    home, named = table[: table.rindex("metadata")], set()
    for line, row in READERS[splitext(table)[1]](os.path.join(root, table)):
        if isinstance(row, dict) and not isinstance(row.get("file_name"), str):
            near = difflib.get_close_matches("file_name", row, 1)
            meant = f" (rename {near[0]}?)" if near else ""
            row = f"has no file_name{meant}; its columns are {', '.join(row)[:200] or 'none'}"
        if isinstance(row, str):
            listing.bad.append((f"{table}:{line}", row))
            continue
        listing.columns |= row.keys() - {"file_name"}
        id = normpath(home + row.pop("file_name").replace("\\", "/"))
        if only is not None and id in known and id not in only:
            continue  # of another split
        if id.startswith(("/", "../")) or not (id in known or os.path.isfile(os.path.join(root, id))):
            listing.bad.append((id, f"{table}:{line} names it, but there is no such file in the folder"))
            continue
        said = [row.pop(column.strip(), None) for column in caption.split(",")]
        found = [text for value in said for text in texts(value)]
        listing.captions.setdefault(id, []).extend(found)
        if not found and any(value is not None for value in said):
            listing.empty.add(id)
        listing.rows.setdefault(id, {intern(name): value for name, value in row.items()})  # names are shared
        if isinstance(row.get("map_file_name"), str):
            listing.maps.add(normpath(home + row["map_file_name"]))
        named.add(id)
    return named


def _jsonl(path: str) -> Iterator[tuple[int, dict | str]]:
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line) if line.strip() else None
            except (ValueError, RecursionError) as error:
                yield number, f"is no JSON: {error}"
                continue
            if row is not None:
                yield number, row if isinstance(row, dict) else 'is no object such as {"file_name": ..., "text": ...}'


def _csv(path: str) -> Iterator[tuple[int, dict | str]]:
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.DictReader(file)
        try:
            for row in reader:
                yield reader.line_num, {name: value for name, value in row.items() if name is not None and value}
        except csv.Error as error:
            yield reader.line_num, f"is no CSV: {error}"


READERS: dict[str, Callable[[str], Iterator[tuple[int, dict | str]]]] = {".jsonl": _jsonl, ".csv": _csv}


def texts(value: object) -> list[str]:
    """A caption, a list of them or nothing -> the captions that say something, in characters that UTF-8 has."""
    values = value if isinstance(value, list) else [value]
    return [text for text in (_sound(str(v)).strip() for v in values if v is not None) if text]


def _sound(text: str) -> str:
    """Half of a surrogate pair, which JSON and file names may hold, becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _label(listing: Listing, folders: dict[str, str]) -> None:
    """Labels from the columns label_id or label, else from class sub-folders; the same numbers in every split."""
    ids = [id for split in listing.splits.values() for id in split]
    rows = [listing.rows.get(id, {}) for id in ids]
    below = [id[len(folders[split]) :] for split, members in listing.splits.items() for id in members]
    classes = [name.split("/")[0] if "/" in name else None for name in below]
    if None not in classes and len(set(classes)) > 1:
        listing.classes = dict(zip(ids, classes))
    columns = [[row.get(name) for row in rows] for name in ("label_id", "label")]
    values = next((column for column in columns if ids and None not in column), list(listing.classes.values()))
    numbers = [label_number(value) for value in values]
    if None in numbers:  # words
        listing.label_names = sorted({str(value) for value in values})
        index = {name: i for i, name in enumerate(listing.label_names)}
        numbers = [index[str(value)] for value in values]
    else:
        words = {number: row.get("label", number) for number, row in zip(numbers, rows)}
        listing.label_names = [str(words.get(i, i)) for i in range(max(numbers, default=-1) + 1)]
    listing.labels = dict(zip(ids, numbers))


def label_number(value: object) -> int | None:
    """A label that is a class's number as it stands, in JSON or in CSV."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 6:
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**16 else None
