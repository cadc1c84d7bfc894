"""A small index of a tar shard: where each picture, its caption and its columns lie, so that any is read at once.

A picture is key.jpg, of any extension that Pillow opens; key.txt, key.json and key.cls belong to it. Nothing is ever
unpacked. What cannot be used is listed with its reason.
"""

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator
from io import BytesIO
from operator import itemgetter
from pathlib import Path
from posixpath import basename, normpath, splitext
from typing import NamedTuple

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from latentdiff import rng
from latentdiff.data.image import EXTENSIONS, BadImage, check_header
from latentdiff.training.files import atomic_path

VERSION = "1"
PARTS = ("image", "txt", "json", "cls")
LARGEST = {"image": 2**29, "txt": 2**20, "json": 2**24, "cls": 16}  # bytes that a member may have
COLUMNS = [f"{part}_{what}" for part in PARTS for what in ("start", "size")] + ["name_start", "name_size", "label"]


class Place(NamedTuple):
    """Where a member's content lies in the archive."""

    name: str
    start: int
    size: int


Sample = dict[str, Place]  # part -> where it lies


def index_shard(path: str, shard: str, index: Path) -> None:
    """Write the index of a shard, aside and then renamed; `shard` is its name in ids. OSError where it cannot."""
    about = os.stat(path)
    index.parent.mkdir(parents=True, exist_ok=True)
    samples, bad = _scan(path, shard)
    # in a random order that stays when shards come or go: the held-out share is the first rows of every shard
    marks = [rng.key("val", f"{shard}/{parts['image'].name}") for parts in samples]
    marked = sorted(zip(marks, samples), key=itemgetter(0))
    names = [parts["image"].name.encode("utf-8", "surrogateescape") for _, parts in marked]
    rows, end = np.zeros((len(marked), len(COLUMNS)), np.int64), 0
    for row, name, (_, parts) in zip(rows, names, marked):
        row[:8] = [n for part in PARTS for n in (parts[part][1:] if part in parts else (0, 0))]
        row[8:] = end, len(name), _number(read_part(path, row, "cls"))
        end += len(name)
    pixels = hashlib.blake2b(repr([parts["image"][::2] for _, parts in marked]).encode())  # names and sizes
    facts = {
        "version": VERSION, "size": about.st_size, "mtime": about.st_mtime_ns, "pixels": pixels.hexdigest()[:32],
        "count": len(rows), "texts": int((rows[:, 3] > 0).sum()), "labels": int(rows[:, 10].max(initial=-1)) + 1,
        "bad": bad,
    }  # fmt: skip
    tensors = {"marks": np.array([mark for mark, _ in marked], np.int64), "rows": rows}
    tensors["names"] = np.frombuffer(b"".join(names), np.uint8)
    with atomic_path(index) as tmp:
        tmp.write_bytes(save(tensors, {"facts": json.dumps(facts)}))


def read_facts(path: str, index: Path) -> dict | None:
    """What an index says of its shard; None where there is none, or where it is of another state of the shard."""
    try:
        about = os.stat(path)
        with safe_open(index, "numpy") as file:
            facts = json.loads(file.metadata()["facts"])
        fresh = (facts["version"], facts["size"], facts["mtime"]) == (VERSION, about.st_size, about.st_mtime_ns)
        return facts if fresh else None
    except Exception:  # absent, damaged, of another version: it is made anew
        return None


def rows_below(index: Path, mark: int) -> int:
    """How many rows have a smaller mark: they stand first."""
    with safe_open(index, "numpy") as file:
        return int(np.searchsorted(file.get_tensor("marks"), mark))


def first_mark(index: Path) -> int:
    """The smallest mark of a shard that has pictures."""
    with safe_open(index, "numpy") as file:
        return int(file.get_slice("marks")[:1][0])


def read_row(index: Path, r: int) -> tuple[np.ndarray, str]:
    """Row r, int64 [COLUMNS], and the name of its picture in the archive."""
    with safe_open(index, "numpy") as file:
        row = file.get_slice("rows")[r : r + 1][0]
        name = file.get_slice("names")[row[8] : row[8] + row[9]]
    return row, name.tobytes().decode("utf-8", "surrogateescape")


def read_part(path: str, row: np.ndarray, part: str) -> bytes:
    """The image, txt, json or cls of a row out of its shard; b"" where it has none. OSError where the shard is gone."""
    start, size = row[2 * PARTS.index(part) :][:2]
    if not size:
        return b""
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(size)


def _number(content: bytes) -> int:
    """A class's number, or -1."""
    text = content.decode("ascii", "replace").strip()
    return int(text) if text.isdecimal() and len(text) < 6 else -1


def _scan(path: str, shard: str) -> tuple[list[Sample], list[tuple[str, str]]]:
    """The pictures with what belongs to them, and what cannot be used: (id, reason)."""
    pictures, texts, bad, length = {}, {}, [], os.path.getsize(path)
    for member, reason in _members(path, length):
        if member is None:
            bad.append((shard, reason))
            continue
        name, part = normpath(member.name), _part(path, member, reason)
        if not reason and (not part or basename(name).startswith(".")):
            continue
        if not reason and member.size > LARGEST[part]:
            reason = f"has {member.size} bytes, more than the {LARGEST[part]} that are read"
        if reason:
            bad.append((f"{shard}/{name}", reason))
        found = pictures if part in ("image", "") else texts.setdefault(splitext(name)[0], {})
        # of two with one name the later counts, as where an archive is unpacked
        found[name if found is pictures else part] = None if reason else Place(name, member.offset_data, member.size)
    samples, pictured = [], {splitext(name)[0] for name in pictures}
    for name, place in pictures.items():
        key = splitext(name)[0]
        if place is not None and not (_owner(key) in pictured and _owner(key) in texts and key not in texts):
            parts = {part: place for part, place in texts.get(key, {}).items() if place is not None}
            samples.append(parts | {"image": place})
    lone = [key for key in texts if "txt" in texts[key] and not {key, _owner(key)} & pictured]
    return samples, bad + [(f"{shard}/{key}.txt", "has no picture beside it") for key in lone]


def _part(path: str, member: tarfile.TarInfo, reason: str) -> str:
    """Which of PARTS a member is, by its extension, or, where it has none, by its content; else ""."""
    extension = splitext(member.name)[1].lower()
    if extension in EXTENSIONS or not extension and not reason and _is_picture(path, member):
        return "image"
    return extension[1:] if extension[1:] in PARTS[1:] else ""


def _owner(key: str) -> str:
    """key.seg.png beside key.jpg and its text is no picture to train on, by WebDataset's rule: key.seg -> key."""
    folder, slash, name = key.rpartition("/")
    return folder + slash + name.partition(".")[0]


def _members(path: str, length: int) -> Iterator[tuple[tarfile.TarInfo | None, str]]:
    """The files and links of an archive, each with why it cannot be used, or ""; last, what is wrong with the whole."""
    last = -1
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # tarfile would keep them all
                if tar.offset <= last:
                    raise tarfile.ReadError("its headers lead back")
                last = tar.offset
                if not member.isdir():
                    yield member, _refusal(member, length)
            if last < length:
                tar.fileobj.seek(last)
                if any(tar.fileobj.read(tarfile.BLOCKSIZE)):
                    raise tarfile.ReadError("no header where the next one should be")
    except Exception as error:  # damaged headers raise anything, from ReadError to RecursionError
        what = getattr(error, "strerror", None) or str(error) or type(error).__name__
        where = f"from byte {last} on" if last > 0 else "and cannot be read"
        yield None, " ".join(f"is a damaged or compressed tar archive {where}: {what}".split())[:300]


def _refusal(member: tarfile.TarInfo, length: int) -> str:
    if not member.isreg() or member.issparse():
        return "is a link, a device or a sparse file; a picture must be a plain file"
    if member.name.startswith("/") or ".." in member.name.replace("\\", "/").split("/"):
        return "has a name that leads out of the archive"
    if member.size < 0 or member.offset_data + member.size > length:
        return f"is cut off: the archive ends before its {member.size} bytes do"
    return ""


def _is_picture(path: str, member: tarfile.TarInfo) -> bool:
    """By its content."""
    if member.size > LARGEST["image"]:
        return False
    with open(path, "rb") as file:
        file.seek(member.offset_data)
        try:
            check_header(BytesIO(file.read(member.size)))
        except BadImage:
            return False
    return True
